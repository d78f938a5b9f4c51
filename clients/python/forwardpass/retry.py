"""Which failures are tried again, when, and on which server: gRPC's service config, as JSON."""

import json
from dataclasses import dataclass

import grpc

from forwardpass.errors import ClientMisused

_CODES = {code.name for code in grpc.StatusCode} - {"OK"}
LOAD_BALANCING = ("round_robin", "pick_first")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Retries within a call's deadline, by the core of gRPC.

    A server that sends `grpc-retry-pushback-ms` names the delay itself, and a negative number forbids the retry.
    A predict is a pure function, so trying twice is safe. At most half of a thousand calls a channel may be failing
    before retries pause (gRPC's throttle), so that a fleet of clients does not keep an overloaded server down.
    """

    attempts: int = 5
    """Tries in all, the first included; 2 to 5, gRPC's own ceiling."""
    initial_backoff_s: float = 0.1
    """Upper end of the random delay before the second try."""
    max_backoff_s: float = 2.0
    """The delay grows no further than this."""
    backoff_multiplier: float = 2.0
    """Growth from one delay to the next."""
    codes: tuple[str, ...] = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
    """Status codes worth another try."""

    def __post_init__(self) -> None:
        if not 2 <= self.attempts <= 5:
            raise ClientMisused(f"retry attempts must be 2 to 5, got {self.attempts}; retry=None tries once")
        if not self.codes or not set(self.codes) <= _CODES:
            raise ClientMisused(f"retry codes must be some of {', '.join(sorted(_CODES))}, got {self.codes}")
        if not 0 < self.initial_backoff_s <= self.max_backoff_s or self.backoff_multiplier < 1:
            raise ClientMisused(
                "a retry needs 0 < initial_backoff_s <= max_backoff_s and backoff_multiplier >= 1, got "
                f"{self.initial_backoff_s}, {self.max_backoff_s} and {self.backoff_multiplier}"
            )


def service_config(retry: RetryPolicy | None, load_balancing: str) -> str:
    """The channel's service config.

    round_robin comes with health checking: every connection watches grpc.health.v1, and a server that turns
    NOT_SERVING gets no new calls before it goes away. (pick_first cannot do that: gRFC A17.)

    Args:
        retry: None for one try.
        load_balancing: "round_robin" or "pick_first".

    Raises:
        ClientMisused: no such load balancing.
    """
    if load_balancing not in LOAD_BALANCING:
        raise ClientMisused(f"load_balancing must be one of {', '.join(LOAD_BALANCING)}, got '{load_balancing}'")
    config: dict[str, object] = {"loadBalancingConfig": [{load_balancing: {}}]}
    if load_balancing == "round_robin":
        config["healthCheckConfig"] = {"serviceName": ""}
    if retry is not None:
        policy = {
            "maxAttempts": retry.attempts,
            "initialBackoff": f"{retry.initial_backoff_s:.9f}s",
            "maxBackoff": f"{retry.max_backoff_s:.9f}s",
            "backoffMultiplier": retry.backoff_multiplier,
            "retryableStatusCodes": list(retry.codes),
        }
        config["methodConfig"] = [{"name": [{"service": "inference.GRPCInferenceService"}], "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": 1000, "tokenRatio": 0.1}
    return json.dumps(config)

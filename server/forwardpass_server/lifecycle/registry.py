"""What the server knows of every version, as one immutable table that readers look things up in.

The repository thread alone makes tables; it publishes each by one assignment. The loop thread reads the current one
without a lock: a lease is one dictionary lookup and one count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from forwardpass_server.errors import InvalidRequest, NotFound, NotReady
from forwardpass_server.lifecycle.leases import Lease, Leases
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.repository import version_number
from forwardpass_server.lifecycle.states import State
from forwardpass_server.tensors.signature import Signature

_NAME_CHARACTERS = 160  # of a caller's name, in a message that goes back to the caller


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """One version, as the repository index shows it.

    Args:
        model: its name.
        version: its number.
        state: where it stands.
        reason: why it stands there, "" when there is nothing to say.
        proved: golden examples were replayed on this device; False while it does not serve.
        wanted: the version policy asks for it.
    """

    model: str
    version: int
    state: State
    reason: str = ""
    proved: bool = False
    wanted: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What ModelMetadata says.

    Args:
        name: of the model.
        version: the one described.
        versions: those that serve, ascending, as decimal strings.
        platform: of the version.
        signature: of the version.
        properties: of the version.
    """

    name: str
    version: int
    versions: tuple[str, ...]
    platform: str
    signature: Signature
    properties: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One state of the server's knowledge.

    Args:
        serving: the leases of each version that serves, by model and version as requests write it; "" is the highest.
        models: every version known, by model and number.
        unasked: models that are there and that nobody has ordered to be loaded.
        complete: the first look at the repository has been followed by all loads that it asked for.
    """

    serving: Mapping[tuple[str, str], Leases[LoadedVersion]] = field(default_factory=dict)
    models: Mapping[str, Mapping[int, VersionStatus]] = field(default_factory=dict)
    unasked: frozenset[str] = frozenset()
    complete: bool = False

    def lease(self, name: str, version: str) -> Lease[LoadedVersion] | None:
        """A lease, or None when the version was withdrawn after this table was made.

        Raises:
            InvalidRequest: `version` is neither "" nor a positive decimal number without leading zeros.
            NotFound: no such model, or the version does not exist or is not to be served.
            NotReady: it is to be served, and is not (yet).
        """
        leases = self.serving.get((name, version))
        if leases is None:
            raise self.why_not(name, version)
        return leases.acquire()

    def version(self, name: str, version: str) -> LoadedVersion:
        """The version that would be leased, without a lease: good for what is constant about it.

        Raises:
            InvalidRequest, NotFound, NotReady: as `lease`.
        """
        leases = self.serving.get((name, version))
        if leases is None:
            raise self.why_not(name, version)
        return leases.version

    def describe(self, name: str, version: str) -> ModelDescription:
        """What ModelMetadata says of it.

        Raises:
            InvalidRequest, NotFound, NotReady: as `lease`.
        """
        loaded = self.version(name, version)
        return ModelDescription(
            name=loaded.model,
            version=loaded.number,
            versions=self.versions(name),
            platform=loaded.platform,
            signature=loaded.signature,
            properties=loaded.properties,
        )

    def ready(self, name: str, version: str) -> bool:
        """Whether a lease would be granted.

        Raises:
            InvalidRequest, NotFound: as `lease`.
        """
        if (name, version) in self.serving:
            return True
        error = self.why_not(name, version)
        if isinstance(error, NotReady):
            return False
        raise error

    def ready_models(self) -> list[bool]:
        """Of each model that is to be served, whether it has a version that serves."""
        return [(name, "") in self.serving for name in self.models if name not in self.unasked]

    def loaded(self) -> list[LoadedVersion]:
        """Every version that serves, by model and number."""
        return [leases.version for (_, version), leases in self.serving.items() if version]

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model that serve, ascending."""
        return tuple(str(number) for number in sorted(self.models[name]) if (name, str(number)) in self.serving)

    def why_not(self, name: str, version: str) -> InvalidRequest | NotFound | NotReady:
        """The error for a version that does not serve."""
        if version and version_number(version) is None:
            return InvalidRequest(
                f"version {version!r:.{_NAME_CHARACTERS}} must be a positive number without leading zeros, or empty "
                "for the latest one"
            )
        statuses = self.models.get(name)
        if statuses is None:
            return NotFound(f"model {name!r:.{_NAME_CHARACTERS}} is not found; RepositoryIndex lists what there is")
        if name in self.unasked and (name, "") not in self.serving:
            return NotFound(f"model {name!r} is not loaded; RepositoryModelLoad loads it")
        serving = ", ".join(self.versions(name)) or "none"
        if version:
            status = statuses.get(int(version))
            if status is None:
                return NotFound(f"version {version} of model {name!r} is not found; versions that serve: {serving}")
            if not status.wanted:
                return NotFound(
                    f"version {version} of model {name!r} is not served ({status.reason or status.state.value}); "
                    f"versions that serve: {serving}"
                )
            return NotReady(f"version {version} of model {name!r} is not ready: {_standing(status)}")
        latest = max((s for s in statuses.values() if s.wanted), key=lambda s: s.version, default=None)
        if latest is None:
            return NotReady(f"model {name!r} has no version that is to be served")
        return NotReady(f"model {name!r} has no ready version; version {latest.version}: {_standing(latest)}")

    def statuses(self) -> list[VersionStatus]:
        """Every version known, by model and number."""
        return [statuses[n] for _, statuses in sorted(self.models.items()) for n in sorted(statuses)]


def _standing(status: VersionStatus) -> str:
    return f"{status.state.value}: {status.reason}" if status.reason else status.state.value

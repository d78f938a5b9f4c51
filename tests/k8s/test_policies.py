"""What the manifests claim: confinement, probes, ports, selectors, settings, and a stop that loses no call.

Numbers and names are never written here a second time: they are read from the server's and the client's own code.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from forwardpass import Client, cli
from forwardpass_server import app, config
from forwardpass_server.rpc import health
from forwardpass_server.transport.stop import FLUSH_S

SOURCE = Path(__file__).resolve().parents[2]
DOCKERFILE = (SOURCE / "Dockerfile").read_text()
SERVER, TRAINING = "forwardpass-server", "forwardpass-training"
AGE_JITTER = 1.1  # gRPC's: a connection may be 10 % older than its maximum
POD_DEFAULT_GRACE_S = 30

Object = dict[str, Any]


def pods(rendered: dict[str, list[Object]]) -> Iterator[tuple[str, str, Object]]:
    """Where from, kind, and the pod's spec, of everything that becomes a pod."""
    for source, objects in rendered.items():
        for each in objects:
            match each["kind"]:
                case "Deployment" | "Job":
                    yield source, each["kind"], each["spec"]["template"]["spec"]
                case "CronJob":
                    yield source, each["kind"], each["spec"]["jobTemplate"]["spec"]["template"]["spec"]
                case "ClusterServingRuntime":
                    yield source, each["kind"], each["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def servers(rendered: dict[str, list[Object]]) -> Iterator[tuple[str, Object, Object, config.ServerConfig]]:
    """Where from, the pod, the server's container, and its settings as the server itself reads them."""
    for source, _, pod in pods(rendered):
        for container in pod["containers"]:
            if container["name"] not in ("server", "kserve-container"):
                continue
            arguments = [argument.replace("{{.Name}}", "model") for argument in container.get("args", [])]
            environment: dict[str, str] = {}
            for reference in container.get("envFrom", []):
                environment |= one(rendered[source], "ConfigMap", reference["configMapRef"]["name"])["data"]
            yield source, pod, container, config.load(arguments, environment)


def one(objects: list[Object], kind: str, name: str) -> Object:
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def kinds(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def test_every_pod_keeps_to_the_restricted_profile_and_to_a_read_only_root(rendered: Any) -> None:
    seen = 0
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user
    for source, kind, pod in pods(rendered):
        for container in containers(pod):
            where = f"{source}: {container['name']}"
            merged = pod.get("securityContext", {}) | container["securityContext"]
            assert merged["runAsNonRoot"] is True, where
            assert merged["runAsUser"] == int(user[1]), where
            assert merged["seccompProfile"] == {"type": "RuntimeDefault"}, where
            assert merged["allowPrivilegeEscalation"] is False, where
            assert merged["readOnlyRootFilesystem"] is True, where
            assert merged["capabilities"] == {"drop": ["ALL"]}, where
            assert "privileged" not in merged, where
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"], where
            seen += 1
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), source
        for volume in pod.get("volumes", []):
            allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "image"}
            assert set(volume) - {"name"} <= allowed, f"{source}: {volume}"
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], f"{source}: {volume}"
        if kind != "ClusterServingRuntime":  # KServe makes that pod's account
            assert pod["automountServiceAccountToken"] is False, source
    assert seen > len(rendered)


def test_the_namespace_enforces_the_restricted_profile(rendered: Any) -> None:
    for overlay in ("overlays/dev", "overlays/production-cpu", "overlays/production-gpu"):
        labels = one(rendered[overlay], "Namespace", "forwardpass")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted", overlay


def test_images_are_stages_of_the_dockerfile_with_a_tag_that_is_not_latest(rendered: Any) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    seen = set()
    for source, _, pod in pods(rendered):
        for container in containers(pod):
            name, _, tag = container["image"].partition(":")
            assert tag not in ("", "latest"), f"{source}: {container['image']}"
            if name == "forwardpass":
                assert tag in stages, f"{source}: {container['image']}"
                seen.add(tag)
    assert seen == {"server-cpu", "server", "training"}


def test_the_server_reads_its_settings_and_listens_on_the_ports_that_are_declared(rendered: Any) -> None:
    seen = 0
    for source, pod, container, settings in servers(rendered):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports.get("grpc", ports.get("h2c")) == settings.grpc_port, source
        assert ports.get("metrics", settings.metrics_port) == settings.metrics_port, source
        assert settings.host in ("0.0.0.0", "::"), f"{source}: nobody outside the pod reaches {settings.host}"
        assert settings.log_format == "json", source
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "grpc" in container[probe]:
                assert container[probe]["grpc"]["port"] == settings.grpc_port, f"{source}: {probe}"
        mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/tmp" in mounted, f"{source}: versions are copied there before they are loaded"
        if container["name"] == "server":
            assert mounted[str(settings.model_repository)]["readOnly"] is True, source
        for path in (settings.tls_cert, settings.tls_key, settings.tls_client_ca):
            assert path is None or str(path.parent) in mounted, f"{source}: {path} is on no volume"
        assert {mount["name"] for mount in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
        seen += 1
    assert seen == len(rendered) - 2  # all but namespace and training


def test_gpu_overlays_refuse_to_serve_on_the_cpu(rendered: Any) -> None:
    for source, _, container, settings in servers(rendered):
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert settings.device == ("cuda" if has_gpu else "cpu"), source
        assert container["image"].endswith(":server") == has_gpu, source


def test_production_serves_only_what_proved_itself(rendered: Any) -> None:
    for source, _, _, settings in servers(rendered):
        if source.startswith("overlays/") and source != "overlays/dev":
            assert settings.require_manifest, source


def test_probes_ask_for_life_and_for_readiness_and_for_nothing_else(rendered: Any) -> None:
    for source, _, container, settings in servers(rendered):
        asks = {probe: container[f"{probe}Probe"] for probe in ("startup", "liveness", "readiness")}
        services = {probe: _service(ask, settings) for probe, ask in asks.items()}
        assert services == {"startup": health.LIVENESS, "liveness": health.LIVENESS, "readiness": ""}, source
        # Loading is waited for; a busy minute is no death; one who leaves gets no calls for longer than a few seconds.
        assert _patience_s(asks["startup"]) >= 300, source
        assert 30 <= _patience_s(asks["liveness"]) <= 120, source
        assert _patience_s(asks["readiness"]) <= 10, source


def _service(probe: Object, settings: config.ServerConfig) -> str:
    if "grpc" in probe:
        assert settings.tls_cert is None, "the kubelet's gRPC probes speak no TLS"
        return str(probe["grpc"].get("service", ""))
    program, *arguments = probe["exec"]["command"]
    assert program == "forwardpass"
    options: argparse.Namespace = cli._parser().parse_args(arguments)
    assert settings.tls_cert is not None
    assert options.url == f"grpcs://127.0.0.1:{settings.grpc_port}"
    assert options.deadline_s < probe["timeoutSeconds"]
    return str(options.service)


def _patience_s(probe: Object) -> float:
    return float(probe["periodSeconds"] * probe["failureThreshold"])


def test_a_pod_has_the_time_that_its_stop_takes(rendered: Any) -> None:
    """preStop, drain, grace and unloading fit; and what is admitted last has the time of the longest run."""
    for source, pod, container, settings in servers(rendered):
        slept = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = slept + settings.drain_s + settings.grace_s + FLUSH_S + app.UNLOAD_S
        assert pod.get("terminationGracePeriodSeconds", POD_DEFAULT_GRACE_S) >= needed, f"{source}: needs {needed} s"
        assert settings.max_run_s is not None, source
        assert settings.grace_s >= settings.max_run_s, source


def test_every_connection_has_left_when_a_production_drain_ends(rendered: Any) -> None:
    seen = 0
    for source, _, _, settings in servers(rendered):
        if settings.drain_s:
            assert settings.max_connection_age_s is not None, source
            assert settings.drain_s >= AGE_JITTER * settings.max_connection_age_s, source
            seen += 1
    assert seen >= len([source for source in rendered if source.startswith("overlays/")]) - 1


def test_a_rollout_waits_until_clients_have_found_the_new_pod(rendered: Any) -> None:
    with Client("127.0.0.1:1") as client:
        looks_again_s = dict(client._channel_options(about_health=False))["grpc.max_reconnect_backoff_ms"] / 1000
    for source, objects in rendered.items():
        for deployment in kinds(objects, "Deployment"):
            assert deployment["spec"]["minReadySeconds"] >= 1.2 * looks_again_s, source
            surge = deployment["spec"]["strategy"]["rollingUpdate"]
            assert surge["maxSurge"] + surge["maxUnavailable"] == 1, source


def test_selectors_find_what_they_mean(rendered: Any) -> None:
    for source, objects in rendered.items():
        for deployment in kinds(objects, "Deployment"):
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            wanted = {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component", "part-of")}
            assert wanted <= set(labels), source
            selector = deployment["spec"]["selector"]["matchLabels"]
            assert selector.items() <= labels.items(), source
            (budget,) = kinds(objects, "PodDisruptionBudget")
            assert budget["spec"]["selector"]["matchLabels"] == selector, source
            ports = {
                port["name"]: port["containerPort"]
                for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
            }
            for service in kinds(objects, "Service"):
                assert service["spec"]["selector"] == selector, f"{source}: {service['metadata']['name']}"
                for port in service["spec"]["ports"]:
                    assert ports[port["targetPort"]] == port["port"], f"{source}: {service['metadata']['name']}"
            for policy in kinds(objects, "NetworkPolicy"):
                assert policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items(), source
                for rule in policy["spec"].get("ingress", []):
                    assert {port["port"] for port in rule["ports"]} <= set(ports.values()), source
            for monitor in kinds(objects, "ServiceMonitor"):
                _check_monitor(monitor, objects)
            for scaler in [*kinds(objects, "HorizontalPodAutoscaler"), *kinds(objects, "ScaledObject")]:
                assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"], source
                assert "replicas" not in deployment["spec"], f"{source}: an apply would undo the autoscaler"


def _check_monitor(monitor: Object, objects: list[Object]) -> None:
    """Exactly one Service with the port is found, and its label gives the job's name that rules rely on."""
    selector = monitor["spec"]["selector"]["matchLabels"]
    found = [
        service for service in kinds(objects, "Service") if selector.items() <= service["metadata"]["labels"].items()
    ]
    for endpoint in monitor["spec"]["endpoints"]:
        having = [each for each in found if endpoint["port"] in {port["name"] for port in each["spec"]["ports"]}]
        assert len(having) == 1
        assert having[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == SERVER


def test_a_canary_is_told_apart_and_the_gateway_knows_both(rendered: Any) -> None:
    stable, canary = rendered["overlays/production-cpu"], rendered["overlays/canary"]
    (first,), (second,) = kinds(stable, "Deployment"), kinds(canary, "Deployment")
    assert first["spec"]["selector"] != second["spec"]["selector"]
    claims = [_claim(each["spec"]["template"]["spec"]) for each in (first, second)]
    assert claims[0] == claims[1] != ""
    assert not kinds(canary, "PersistentVolumeClaim")
    (route,) = kinds(rendered["components/gateway"], "GRPCRoute")
    (rule,) = route["spec"]["rules"]
    services = {each["metadata"]["name"]: each for each in kinds(stable + canary, "Service")}
    for backend in rule["backendRefs"]:
        assert backend["port"] in {port["port"] for port in services[backend["name"]]["spec"]["ports"]}
    assert sum(backend["weight"] for backend in rule["backendRefs"]) == 100


def _claim(pod: Object) -> str:
    return next(
        (each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each), ""
    )


def test_training_writes_where_the_servers_read(rendered: Any) -> None:
    (claim,) = kinds(rendered["overlays/production-cpu"], "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, _, pod in pods({"training": rendered["training"]}):
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert volumes["models"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        for container in containers(pod):
            mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            if "--repository" in container["args"]:
                assert container["args"][container["args"].index("--repository") + 1] == mounted["models"]
            assert re.search(rf"^WORKDIR {mounted['runs']}$", DOCKERFILE, re.MULTILINE)


def test_both_autoscalers_follow_the_same_rule(rendered: Any) -> None:
    (hpa,) = kinds(rendered["components/autoscaling-hpa"], "HorizontalPodAutoscaler")
    (keda,) = kinds(rendered["components/autoscaling-keda"], "ScaledObject")
    assert keda["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["spec"]["behavior"]
    assert keda["spec"]["minReplicaCount"] == hpa["spec"]["minReplicas"]
    assert keda["spec"]["maxReplicaCount"] == hpa["spec"]["maxReplicas"]
    (metric,), (trigger,) = hpa["spec"]["metrics"], keda["spec"]["triggers"]
    name = metric["pods"]["metric"]["name"]
    assert trigger["metadata"]["query"].startswith(f"sum({name}{{")
    target_milli = int(metric["pods"]["target"]["averageValue"].removesuffix("m"))
    assert float(trigger["metadata"]["threshold"]) == target_milli / 1000


def test_every_alert_has_a_heading_in_the_runbook_and_no_heading_is_left_over(rendered: Any) -> None:
    (rule,) = kinds(rendered["components/monitoring"], "PrometheusRule")
    alerts = [each for group in rule["spec"]["groups"] for each in group["rules"] if "alert" in each]
    runbook = (SOURCE / "k8s" / "RUNBOOK.md").read_text()
    headings = re.findall(r"^## (Forwardpass\w+)$", runbook, re.MULTILINE)
    assert sorted(headings) == sorted(alert["alert"] for alert in alerts)
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].endswith(f"k8s/RUNBOOK.md#{alert['alert'].lower()}")


def test_the_readme_names_every_overlay_and_component() -> None:
    readme = (SOURCE / "k8s" / "README.md").read_text()
    for folder in ("overlays", "components"):
        for each in (SOURCE / "k8s" / folder).iterdir():
            if each.is_dir():
                assert f"`{each.name}`" in readme, f"{folder}/{each.name}"


def test_every_file_of_the_manifests_is_used() -> None:
    for folder in {path.parent for path in (SOURCE / "k8s").rglob("kustomization.yaml")}:
        text = (folder / "kustomization.yaml").read_text()
        for path in folder.iterdir():
            if path.is_file() and path.name != "kustomization.yaml":
                assert path.name in text, f"{path.relative_to(SOURCE)} is in no kustomization"
    for path in (SOURCE / "k8s").rglob("*.yaml"):
        list(yaml.safe_load_all(path.read_text()))

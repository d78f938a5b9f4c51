"""Every object is what its kind allows: no unknown field, no missing one.

Kinds of Kubernetes itself are held against its own schemas, strictly. Kinds of others have no schema here: they are
held against the shapes below, which state every field that we use and what it must be. With `FORWARDPASS_CRD_SCHEMAS`,
a checkout of the public catalogue of such schemas (datreeio/CRDs-catalog), they are held against those too.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import SchemaNotFoundError, ValidationError

VERSIONS = ("1.32", "1.37")

TEXT, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
ANY: dict[str, Any] = {}


def fields(*, required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    names = required.split()
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


LABELS = {"type": "object", "additionalProperties": TEXT}
POLICY = fields(
    type={"enum": ["Pods", "Percent"]}, value=COUNT, periodSeconds=COUNT, required="type value periodSeconds"
)
SCALING = fields(stabilizationWindowSeconds=COUNT, selectPolicy={"enum": ["Max", "Min"]}, policies=many(POLICY))
BACKEND = fields(name=TEXT, port=COUNT, weight=COUNT, required="name port")
MODEL = fields(
    modelFormat=fields(name=TEXT, version=TEXT, required="name"),
    protocolVersion=TEXT,
    runtime=TEXT,
    storageUri={"type": "string", "pattern": "^(pvc|gs|s3|https?|oci|hf)://"},
    required="modelFormat",
)
RULE = {
    "oneOf": [
        fields(record=TEXT, expr=TEXT, required="record expr"),
        fields(alert=TEXT, expr=TEXT, **{"for": DURATION}, labels=LABELS, annotations=LABELS, required="alert expr"),
    ]
}
SHAPES = {
    "monitoring.coreos.com/v1/ServiceMonitor": fields(
        jobLabel=TEXT,
        selector=fields(matchLabels=LABELS),
        endpoints=many(fields(port=TEXT, path=TEXT, interval=DURATION, scrapeTimeout=DURATION)),
        required="selector endpoints",
    ),
    "monitoring.coreos.com/v1/PrometheusRule": fields(
        groups=many(fields(name=TEXT, interval=DURATION, rules=many(RULE), required="name rules")), required="groups"
    ),
    "cert-manager.io/v1/Certificate": fields(
        secretName=TEXT,
        duration=DURATION,
        renewBefore=DURATION,
        privateKey=fields(
            algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]}, size=COUNT, rotationPolicy={"enum": ["Always", "Never"]}
        ),
        usages=many({"enum": ["server auth", "client auth", "digital signature", "key encipherment"]}),
        dnsNames=many(TEXT),
        issuerRef=fields(kind={"enum": ["Issuer", "ClusterIssuer"]}, name=TEXT, group=TEXT, required="name"),
        required="secretName issuerRef",
    ),
    "gateway.networking.k8s.io/v1/GRPCRoute": fields(
        parentRefs=many(fields(name=TEXT, namespace=TEXT, sectionName=TEXT, required="name")),
        hostnames=many(TEXT),
        rules=many(
            fields(matches=many(fields(method=fields(service=TEXT, method=TEXT, type=TEXT))), backendRefs=many(BACKEND))
        ),
    ),
    "keda.sh/v1alpha1/ScaledObject": fields(
        scaleTargetRef=fields(name=TEXT, kind=TEXT, apiVersion=TEXT, required="name"),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        fallback=fields(failureThreshold=COUNT, replicas=COUNT, required="failureThreshold replicas"),
        advanced=fields(
            horizontalPodAutoscalerConfig=fields(behavior=fields(scaleUp=SCALING, scaleDown=SCALING)),
        ),
        triggers=many(
            fields(
                type={"const": "prometheus"},
                metricType={"enum": ["AverageValue", "Value"]},
                metadata=fields(
                    serverAddress=TEXT, query=TEXT, threshold=TEXT, required="serverAddress query threshold"
                ),
                required="type metadata",
            )
        ),
        required="scaleTargetRef triggers",
    ),
    "serving.kserve.io/v1alpha1/ClusterServingRuntime": fields(
        supportedModelFormats=many(fields(name=TEXT, version=TEXT, autoSelect=FLAG, priority=COUNT, required="name")),
        protocolVersions=many({"enum": ["v1", "v2", "grpc-v2"]}),
        annotations=LABELS,
        containers=many({"type": "object", "required": ["name", "image"]}),  # a container of Kubernetes: see below
        volumes=many(ANY),
        required="containers",
    ),
    "serving.kserve.io/v1beta1/InferenceService": fields(predictor=fields(model=MODEL), required="predictor"),
}


def is_kubernetes_own(kind: dict[str, Any]) -> bool:
    group = kind["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway."))


def as_pod(runtime: dict[str, Any]) -> dict[str, Any]:
    """What a ClusterServingRuntime becomes; its containers are Kubernetes' own."""
    spec = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"], "spec": spec}


@pytest.mark.parametrize("version", VERSIONS)
def test_kinds_of_kubernetes_pass_its_own_schemas_strictly(rendered: Any, version: str) -> None:
    seen, done = set(), set()
    for source, objects in rendered.items():
        for each in objects:
            each = as_pod(each) if each["kind"] == "ClusterServingRuntime" else each
            text = json.dumps(each)
            if not is_kubernetes_own(each) or text in done:  # every component brings the base along
                continue
            done.add(text)
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except (ValidationError, SchemaNotFoundError) as error:
                pytest.fail(f"{source}: {each['kind']} {each['metadata']['name']}: {error}")
            seen.add(each["kind"])
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "Job", "CronJob", "Pod"} <= seen


def test_a_field_that_does_not_exist_is_found(rendered: Any) -> None:
    deployment = copy.deepcopy(next(each for each in rendered["base"] if each["kind"] == "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFileSystem"] = True
    with pytest.raises(ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_kinds_of_others_have_the_shapes_stated_here(rendered: Any) -> None:
    catalogue = os.environ.get("FORWARDPASS_CRD_SCHEMAS")
    seen = set()
    for source, objects in rendered.items():
        for each in objects:
            if is_kubernetes_own(each):
                continue
            name = f"{each['apiVersion']}/{each['kind']}"
            assert name in SHAPES, f"{source}: {name} has no schema and no shape; state one in {Path(__file__).name}"
            jsonschema.validate(each["spec"], SHAPES[name])
            seen.add(name)
            if catalogue is not None:
                group, _, version = each["apiVersion"].partition("/")
                file = Path(catalogue) / group / f"{each['kind'].lower()}_{version}.json"
                jsonschema.Draft7Validator(json.loads(file.read_text())).validate(each)
    assert seen == set(SHAPES)

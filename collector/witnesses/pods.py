"""`kubectl get pods -A -o json` → rows of `workloads`: whose an address is, and what decides whether its traffic is captured.

The name of a workload is what its telemetry calls it, as far as the pod says so: `resource.opentelemetry.io/service.name`,
OTEL_SERVICE_NAME, then the label that Istio, Kubernetes or custom has for it, then its controller's name.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from collector.errors import DecodeError
from collector.witnesses.envoy import unix_nano
from collector.witnesses.values import Row, address

KEPT_PREFIXES: Final = (
    "traffic.sidecar.istio.io/", "sidecar.istio.io/", "proxy.istio.io/", "istio.io/", "ambient.istio.io/",
    "inject.istio.io/", "networking.istio.io/", "config.linkerd.io/", "linkerd.io/", "viz.linkerd.io/",
)  # fmt: skip
"""Annotations and labels that decide about capture."""

_NAME_LABELS: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app", "k8s-app")
_NAME_ANNOTATION: Final = "resource.opentelemetry.io/service.name"
_TRUST_DOMAIN: Final = "cluster.local"
_HASH: Final = re.compile(r"-[a-z0-9]{5,10}$")
_REFERENCE: Final = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")

Json = Mapping[str, Any]


def pods_of(document: bytes) -> list[Any]:
    """The items of a list, or the one pod that the document is; raises DecodeError."""
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        raise DecodeError("not JSON") from None
    if not isinstance(value, dict):
        raise DecodeError("not an object: expected the output of `kubectl get pods -A -o json`")
    items = value.get("items") if "items" in value else [value]
    if not isinstance(items, list):
        raise DecodeError("its items are no list")
    return items


def pod_rows(pod: object, *, seen_unix_nano: int, received_unix_nano: int, source: str) -> list[Row]:
    """A row for each address of a pod; none while it has none. Raises DecodeError where it is no pod.

    `seen_unix_nano` is when the list was made: a pod that runs is known to have its address until then.
    """
    if not isinstance(pod, dict) or pod.get("kind", "Pod") != "Pod":
        raise DecodeError("not a pod")
    metadata, spec, status = (_object(pod, key) for key in ("metadata", "spec", "status"))
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise DecodeError("a pod without metadata.name")
    mesh = _mesh(spec, metadata)
    known: Row = {
        "service_name": _service_name(metadata, spec, name),
        "namespace": _string(metadata.get("namespace")),
        "pod": name,
        "principal": _principal(mesh, metadata, spec),
        "mesh": mesh,
        "host_network": spec.get("hostNetwork") is True,
        "first_seen_unix_nano": unix_nano(status.get("startTime")),
        "last_seen_unix_nano": _ended(status) or seen_unix_nano,
        "source": source,
        "received_unix_nano": received_unix_nano,
        "attributes": _attributes(metadata),
    }
    return [{"address": found, **known} for found in _addresses(status)]


def _object(of: Json, key: str) -> Json:
    value = of.get(key)
    return value if isinstance(value, dict) else {}


def _objects(of: Json, *keys: str) -> Iterator[Json]:
    for key in keys:
        value = of.get(key)
        yield from (item for item in (value if isinstance(value, list) else []) if isinstance(item, dict))


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _addresses(status: Json) -> list[str]:
    found = [address(item.get("ip")) for item in _objects(status, "podIPs")] or [address(status.get("podIP"))]
    return list(dict.fromkeys(a for a in found if a is not None))


def _service_name(metadata: Json, spec: Json, pod: str) -> str:
    labels = _object(metadata, "labels")
    names: Iterable[object] = (
        _object(metadata, "annotations").get(_NAME_ANNOTATION),
        *(_environment(container).get("OTEL_SERVICE_NAME") for container in _objects(spec, "containers")),
        *(labels.get(key) for key in _NAME_LABELS),
        _owner(metadata, labels),
    )
    return next((name for name in map(_string, names) if name), pod)


def _owner(metadata: Json, labels: Json) -> str | None:
    """The controller's name; of a Deployment's ReplicaSet that of the Deployment."""
    for owner in _objects(metadata, "ownerReferences"):
        name = _string(owner.get("name"))
        if name and owner.get("kind") == "ReplicaSet":
            template = _string(labels.get("pod-template-hash"))
            return name.removesuffix(f"-{template}") if template else _HASH.sub("", name)
        if name:
            return name
    return None


def _environment(container: Json) -> dict[str, str]:
    """Variables with a value of their own, references to each other resolved."""
    values: dict[str, str] = {}
    for item in _objects(container, "env"):
        if isinstance(item.get("name"), str) and isinstance(item.get("value"), str):
            values[item["name"]] = _REFERENCE.sub(lambda m: values.get(m[1], m[0]), item["value"])
    return values


def _mesh(spec: Json, metadata: Json) -> str:
    """By the proxy that runs in the pod; ambient by what its CNI agent wrote on it."""
    names = {container.get("name") for container in _objects(spec, "containers", "initContainers")}
    if "istio-proxy" in names:
        return "istio"
    if "linkerd-proxy" in names:
        return "linkerd"
    return "ambient" if _object(metadata, "annotations").get("ambient.istio.io/redirection") == "enabled" else "none"


def _principal(mesh: str, metadata: Json, spec: Json) -> str | None:
    namespace = _string(metadata.get("namespace"))
    account = _string(spec.get("serviceAccountName")) or "default"
    if namespace is None or mesh == "none":
        return None
    proxy = f"{mesh if mesh == 'linkerd' else 'istio'}-proxy"
    variables = next(
        (_environment(c) for c in _objects(spec, "containers", "initContainers") if c.get("name") == proxy), {}
    )
    if mesh == "linkerd":
        told = variables.get("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", "")
        told = told.replace("$(_pod_sa)", account).replace("$(_pod_ns)", namespace)
        is_whole = told and "$" not in told
        return told if is_whole else f"{account}.{namespace}.serviceaccount.identity.linkerd.{_TRUST_DOMAIN}"
    return f"spiffe://{variables.get('TRUST_DOMAIN') or _TRUST_DOMAIN}/ns/{namespace}/sa/{account}"


def _ended(status: Json) -> int | None:
    """When the last container of a pod that is over ended: its address may have gone to another since."""
    if status.get("phase") not in {"Succeeded", "Failed"}:
        return None
    ends = (
        unix_nano(_object(_object(container, "state"), "terminated").get("finishedAt"))
        for container in _objects(status, "containerStatuses")
    )
    return max((end for end in ends if end is not None), default=None)


def _attributes(metadata: Json) -> list[tuple[str, str]]:
    found = {
        key: value
        for kept in ("labels", "annotations")
        for key, value in _object(metadata, kept).items()
        if isinstance(key, str) and isinstance(value, str) and key.startswith(KEPT_PREFIXES)
    }
    return list(found.items())

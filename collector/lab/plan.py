"""What the lab plays: pods, addresses, ways past the mesh, and every single call, decided from a seed. Pure.

| way | what happens | expected at the caller's proxy | at the callee's |
|---|---|---|---|
| clean | web calls orders and legacy by their service addresses: both sidecars, mTLS | seen | seen |
| excluded_port | web's port 9080 is excluded from redirection | missed | seen, plaintext |
| excluded_ip_range | web's range of legacy's address is excluded | missed | seen, plaintext |
| proxy_uid | batch's application runs as the proxy's user | missed | seen, plaintext |
| no_sidecar | web calls ledger, which has no sidecar | seen | none there |
| plaintext | cron has no sidecar and calls orders | none there | seen, plaintext |
| direct_pod_ip | web dials orders' own address: PassthroughCluster | seen, passthrough | seen, plaintext |
| udp | web sends datagrams to ledger | never captured | none there |
| forged_xfcc | mallory, outside the mesh, calls a port that orders excludes, with an x-forwarded-client-cert of web's | none there | missed |
"""

import random
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Way = Literal[
    "clean",
    "excluded_port",
    "excluded_ip_range",
    "proxy_uid",
    "no_sidecar",
    "plaintext",
    "direct_pod_ip",
    "udp",
    "forged_xfcc",
]
Style = Literal["kept", "caller_closes", "callee_closes"]

WAYS: Final[tuple[Way, ...]] = (
    "clean",
    "excluded_port",
    "excluded_ip_range",
    "proxy_uid",
    "no_sidecar",
    "plaintext",
    "direct_pod_ip",
    "udp",
    "forged_xfcc",
)
STYLES: Final[tuple[Style, ...]] = ("kept", "caller_closes", "callee_closes")
"""How a call's connection ends: it is kept for the next calls of its way, or one side closes it right after the answer."""

BRIDGE: Final = "provlab0"
NAMESPACE_PREFIX: Final = "provlab-"
SUBNET: Final = "10.77.0"
SERVICE_SUBNET: Final = "10.78.0"
GATEWAY: Final = f"{SUBNET}.1"
"""The bridge's own address, outside the mesh: the collector listens there."""

TRUST_DOMAIN: Final = "cluster.local"
PROXY_UID: Final = 1337
APP_UID: Final = 1000
WITNESS_UID: Final = 65534

SERVICE_PORT: Final = 8080
EXCLUDED_PORT: Final = 9080
UNGUARDED_PORT: Final = 8082
UDP_PORT: Final = 7777


@dataclass(frozen=True, slots=True)
class Pod:
    """One network namespace.

    Attributes:
        name: Also its service.name.
        number: The last part of its address, and of its service's.
        meshed: Whether it has a sidecar.
        serves: Whether it answers calls.
        uid: Of its application.
        exclude_outbound_ports: As `traffic.sidecar.istio.io/excludeOutboundPorts`.
        exclude_outbound_ranges: As `traffic.sidecar.istio.io/excludeOutboundIPRanges`.
        exclude_inbound_ports: As `traffic.sidecar.istio.io/excludeInboundPorts`.
        instrumented: Whether its application has the middleware.
    """

    name: str
    number: int
    meshed: bool = True
    serves: bool = False
    uid: int = APP_UID
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_outbound_ranges: tuple[str, ...] = ()
    exclude_inbound_ports: tuple[int, ...] = ()
    instrumented: bool = True

    @property
    def address(self) -> str:
        """Its own."""
        return f"{SUBNET}.{self.number}"

    @property
    def service_address(self) -> str:
        """Its service's, which only proxies know the way to."""
        return f"{SERVICE_SUBNET}.{self.number}"

    @property
    def host(self) -> str:
        """Its service's name."""
        return f"{self.name}.lab"

    @property
    def namespace(self) -> str:
        """Its network namespace's name."""
        return NAMESPACE_PREFIX + self.name

    @property
    def principal(self) -> str:
        """Its SPIFFE id."""
        return f"spiffe://{TRUST_DOMAIN}/ns/lab/sa/{self.name}"


WEB: Final = Pod("web", 10, exclude_outbound_ports=(EXCLUDED_PORT,), exclude_outbound_ranges=(f"{SUBNET}.30/32",))
ORDERS: Final = Pod("orders", 20, serves=True, exclude_inbound_ports=(UNGUARDED_PORT,))
LEGACY: Final = Pod("legacy", 30, serves=True)
BATCH: Final = Pod("batch", 40, uid=PROXY_UID)
LEDGER: Final = Pod("ledger", 50, meshed=False, serves=True)
CRON: Final = Pod("cron", 60, meshed=False)
MALLORY: Final = Pod("mallory", 70, meshed=False, instrumented=False)
PODS: Final = (WEB, ORDERS, LEGACY, BATCH, LEDGER, CRON, MALLORY)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the script.

    Attributes:
        way: Which way it takes: the truth that verdicts are graded against.
        style: How its connection ends; `kept` for UDP.
        caller: Name of the pod.
        callee: Name of the pod.
        address: What it dials.
        port: Likewise.
        host: The Host header.
        headers: Further ones.
    """

    way: Way
    style: Style
    caller: str
    callee: str
    address: str
    port: int
    host: str
    headers: tuple[tuple[str, str], ...] = ()

    def document(self) -> dict[str, Any]:
        """As the caller's program reads it."""
        return asdict(self)


_FORGED: Final = (("x-forwarded-client-cert", f'By={ORDERS.principal};Hash={"0" * 64};Subject="";URI={WEB.principal}'),)


def _call(way: Way, style: Style, draw: random.Random) -> Call:
    match way:
        case "clean":
            callee = draw.choice((ORDERS, ORDERS, LEGACY))
            return _to_service(way, style, WEB, callee)
        case "excluded_port":
            return _direct(way, style, WEB, ORDERS, EXCLUDED_PORT, ORDERS.host)
        case "excluded_ip_range":
            return _direct(way, style, WEB, LEGACY, SERVICE_PORT, LEGACY.host)
        case "proxy_uid":
            return _direct(way, style, BATCH, ORDERS, SERVICE_PORT, ORDERS.host)
        case "no_sidecar":
            return _to_service(way, style, WEB, LEDGER)
        case "plaintext":
            return _direct(way, style, CRON, ORDERS, SERVICE_PORT, ORDERS.host)
        case "direct_pod_ip":
            return _direct(way, style, WEB, ORDERS, SERVICE_PORT, f"{ORDERS.address}:{SERVICE_PORT}")
        case "udp":
            return _direct(way, "kept", WEB, LEDGER, UDP_PORT, "")
        case "forged_xfcc":
            return _direct(way, style, MALLORY, ORDERS, UNGUARDED_PORT, ORDERS.host, _FORGED)


def _to_service(way: Way, style: Style, caller: Pod, callee: Pod) -> Call:
    host = f"{callee.host}:{SERVICE_PORT}"
    return Call(way, style, caller.name, callee.name, callee.service_address, SERVICE_PORT, host)


def _direct(  # noqa: PLR0917 - a table's columns
    way: Way, style: Style, caller: Pod, callee: Pod, port: int, host: str, headers: tuple[tuple[str, str], ...] = ()
) -> Call:
    return Call(way, style, caller.name, callee.name, callee.address, port, host, headers)


def pod_list(pods: tuple[Pod, ...], started: str) -> dict[str, Any]:
    """The pods as `kubectl get pods -A -o json` would list them; `started` is RFC 3339."""
    return {"apiVersion": "v1", "kind": "List", "items": [_listed(pod, started) for pod in pods]}


def _listed(pod: Pod, started: str) -> dict[str, Any]:
    exclusions = {
        "excludeOutboundPorts": pod.exclude_outbound_ports,
        "excludeOutboundIPRanges": pod.exclude_outbound_ranges,
        "excludeInboundPorts": pod.exclude_inbound_ports,
    }
    annotations = {f"traffic.sidecar.istio.io/{k}": ",".join(map(str, v)) for k, v in exclusions.items() if v}
    containers = [{"name": "app"}, *([{"name": "istio-proxy"}] if pod.meshed else [])]
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{pod.name}-0",
            "namespace": "lab",
            "labels": {"app": pod.name},
            "annotations": annotations,
        },
        "spec": {"containers": containers, "serviceAccountName": pod.name},
        "status": {"phase": "Running", "podIP": pod.address, "startTime": started},
    }


def script(clean: int, odd_each: int, seed: int) -> list[Call]:
    """`clean` clean calls with `odd_each` calls of every other way at random places among them."""
    draw = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    odd: list[Way] = [way for way in WAYS if way != "clean" for _ in range(odd_each)]
    ordinary: list[Way] = ["clean"] * clean
    ways = ordinary + odd
    draw.shuffle(ways)
    return [_call(way, draw.choice(STYLES), draw) for way in ways]

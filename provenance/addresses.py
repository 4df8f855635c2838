"""Host and port from the ways in which gRPC writes an address (its naming.md). Pure."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from provenance import names

DEFAULT_GRPC_PORT: Final = 443
"""What gRPC dials when a `dns:` target names no port."""

MAX_PORT: Final = 65_535

_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
_HOST_PORT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")


def target_attributes(target: str) -> dict[str, str | int]:
    """`server.address` and `server.port` of a channel's target, as it is dialled.

    `dns:///host:port`, `dns://resolver/host`, `ipv4:a:p`, `ipv6:[a]:p`, `host:port`, `unix:path`, `unix:///path`,
    `unix-abstract:name`. Of several addresses none is named, because which one is dialled is decided call by call.
    Other schemes (`xds:///name`) give their name as the address and no port. Empty where nothing can be read.
    """
    scheme, rest = _split_scheme(target)
    if scheme in {"unix", "unix-abstract"}:
        path = rest.removeprefix("//")
        return {names.SERVER_ADDRESS: path} if path else {}
    endpoint = _without_authority(rest)
    if "," in endpoint:
        return {}
    if scheme not in {"", "dns", "ipv4", "ipv6"}:
        return {names.SERVER_ADDRESS: endpoint} if endpoint else {}
    host, port = _host_port(endpoint)
    if not host:
        return {}
    return {names.SERVER_ADDRESS: host, names.SERVER_PORT: DEFAULT_GRPC_PORT if port is None else port}


@lru_cache(maxsize=1024)  # a peer keeps its connection for many calls
def peer_attributes(peer: str) -> Mapping[str, str | int]:
    """`network.peer.address` and `.port` of what gRPC calls a peer: `ipv4:10.0.0.1:2`, `ipv6:%5B::1%5D:2`, `unix:`."""
    scheme, rest = _split_scheme(peer)
    if scheme in {"unix", "unix-abstract"}:
        return {names.NETWORK_PEER_ADDRESS: rest} if rest else {}
    host, port = _host_port(unquote(rest).partition(",")[0])
    if not host:
        return {}
    return {names.NETWORK_PEER_ADDRESS: host} | ({} if port is None else {names.NETWORK_PEER_PORT: port})


def socket_attributes(address: object) -> dict[str, str | int]:
    """`network.peer.address` and `.port` of a socket's address: (host, port, ...) or a Unix socket's path."""
    match address:
        case (str(host), int(port), *_) if host:
            return {names.NETWORK_PEER_ADDRESS: host} | ({names.NETWORK_PEER_PORT: port} if port > 0 else {})
        case str(path) if path:
            return {names.NETWORK_PEER_ADDRESS: path}
        case _:
            return {}


def _split_scheme(target: str) -> tuple[str, str]:
    """The scheme, lowercase, and the rest; `host:50051` has no scheme, and neither has `::1`."""
    scheme, colon, rest = target.partition(":")
    known = scheme.lower()
    if colon and (known in _SCHEMES or rest.startswith("//")):
        return known, rest
    return "", target


def _without_authority(rest: str) -> str:
    if rest.startswith("//"):
        return rest[2:].partition("/")[2]
    return rest.removeprefix("/")


def _host_port(endpoint: str) -> tuple[str, int | None]:
    if endpoint.count(":") > 1 and not endpoint.startswith("["):
        return endpoint, None  # a bare IPv6 address
    match = _HOST_PORT.fullmatch(endpoint)
    if match is None:
        return "", None
    port = None if match[3] is None else int(match[3])
    return (match[1] or match[2]), (port if port is None or port <= MAX_PORT else None)

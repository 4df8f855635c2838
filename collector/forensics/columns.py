"""What several relations read from the same columns, once each: a request's key, whether a span failed, where it dialled."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import ibis
import ibis.expr.types as ir
import polars as pl

REQUEST_ID_LENGTH: Final = 36
"""Envoy packs its sampling decision into character 14 of any x-request-id of exactly this length."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_AUTHORITY: Final = r"""^([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#\\]*@)?(\[[0-9A-Fa-f:.]+\]|[^/?#\\:@\[\]\s]+)(?::([0-9]{1,5}))?(?:[/?#\\]|$)"""
r"""Scheme, host and port of a URL (RFC 3986, section 3.2). Who the user is says nothing of the destination; a backslash ends
the authority, as browsers have it: `https://a.example\@b.example/` goes to a.example."""

_ERROR_GRPC: Final = (2, 4, 12, 13, 14, 15)
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: what the conventions call a server's error."""


def request_key_of(request_id: ir.StringValue) -> ir.StringValue:
    """The request id without the character that Envoy overwrites with its sampling decision; NULL if empty."""
    packed = request_id.length() == REQUEST_ID_LENGTH
    return ibis.ifelse(packed, request_id.substr(0, 14) + request_id.substr(15), request_id).nullif("")


def is_error(table: ir.Table) -> ir.BooleanValue:
    """Whether a span failed: status ERROR, an HTTP status of 500 and above, or a gRPC status that is the server's fault."""
    return (
        (table.status_code == "ERROR")
        | (table.http_response_status_code >= 500).fill_null(False)
        | table.rpc_grpc_status_code.isin(_ERROR_GRPC).fill_null(False)
    )


def host_of(table: ir.Table) -> ir.StringValue:
    """The host that a client span says it dialled, lowercase: by name, by its URL, else by the peer's address; NULL if none.

    Instrumentations of the older conventions write nothing but the method and the URL.
    """
    url = table.url_full.re_extract(_AUTHORITY, 2).nullif("").re_replace(r"[\[\]]", "")
    return ibis.coalesce(table.server_address, url, table.network_peer_address).lower()


def port_of(table: ir.Table) -> ir.IntegerValue:
    """The port that goes with `host_of`: as recorded, as the URL has it, as its scheme implies, else the peer's; NULL if none."""
    url = table.url_full.re_extract(_AUTHORITY, 3).nullif("").cast("int64")
    scheme = table.url_full.re_extract(_AUTHORITY, 1).lower()
    implied = ibis.cases(*((scheme == name, ibis.literal(port, "int64")) for name, port in DEFAULT_PORTS.items()))
    return ibis.coalesce(
        table.server_address.notnull().ifelse(table.server_port, ibis.null("int64")),
        url,
        implied,
        table.network_peer_port,
        table.server_port,
    )


def address_of(host: ir.StringValue, port: ir.IntegerValue) -> ir.StringValue:
    """host:port, or the host alone; an IPv6 address gets the brackets that access logs write."""
    bracketed = host.contains(":").ifelse("[" + host + "]", host)
    return port.isnull().ifelse(host, bracketed + ":" + port.cast("string"))


def is_error_row(row: Mapping[str, Any]) -> bool:
    """`is_error` of one span's row."""
    return (
        row["status_code"] == "ERROR"
        or (row["http_response_status_code"] or 0) >= 500
        or row["rpc_grpc_status_code"] in _ERROR_GRPC
    )


def destination_of_row(row: Mapping[str, Any]) -> str:
    """What one client span says it reached, out of its row: the same as `edges.destination_of` computes for a table.

    For the few spans of one trace: as SQL it takes three times as long to plan as they take to read.
    """
    url = re.match(_AUTHORITY, row["url_full"] or "")
    host = row["server_address"]
    if host is None and url is not None:
        host = re.sub(r"[\[\]]", "", url[2])
    if host is None:
        host = row["network_peer_address"]
    if host is not None:
        return _with_port(host.lower(), _port_of_row(row, url))
    names = ("peer_service", "db_system_name", "messaging_system", "rpc_service", "name")
    return str(next(row[name] for name in names if row[name] is not None))


def _port_of_row(row: Mapping[str, Any], url: "re.Match[str] | None") -> int | None:
    found: list[int | None] = [
        row["server_port"] if row["server_address"] is not None else None,
        int(url[3]) if url is not None and url[3] else None,
        DEFAULT_PORTS.get(url[1].lower()) if url is not None else None,
        row["network_peer_port"],
        row["server_port"],
    ]
    return next((port for port in found if port is not None), None)


def _with_port(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def pairs_of(value: object) -> list[tuple[str, str]]:
    """A MAP of text as a frame or a cursor has it, without the entries that are NULL.

    A dictionary from Polars 2.1 on and from DuckDB, before that a list of structs, from Arrow a list of pairs; NULL is none.
    """
    match value:
        case Mapping():
            entries: Iterable[tuple[object, object]] = value.items()
        case pl.Series() | list():
            entries = [(e["key"], e["value"]) if isinstance(e, Mapping) else (e[0], e[1]) for e in value]
        case _:
            return []
    return [(str(key), str(item)) for key, item in entries if item is not None]

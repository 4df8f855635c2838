"""The tables of an evidence store, once: DuckDB's DDL, Arrow's schemas and Ibis's unbound tables all come from here.

Pure data: no I/O and no DuckDB. OTLP's names became column names; ids are numbers here (UUID, UBIGINT) because joins on
them run two to three times faster than on hex text, and hex everywhere that people or other programs see them.

Everything that arrives is appended as Arrow record batches keyed by table name; so decoders and witnesses know these
schemas and the store knows nothing else about them.
"""

from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

SCHEMA_VERSION: Final = 3

SqlType = Literal["UUID", "UBIGINT", "BIGINT", "INTEGER", "BOOLEAN", "VARCHAR", "MAP(VARCHAR, VARCHAR)"]

_ARROW: Final[dict[str, pa.DataType]] = {
    "UUID": pa.uuid(),
    "UBIGINT": pa.uint64(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
    "MAP(VARCHAR, VARCHAR)": pa.map_(pa.string(), pa.string()),
}

_IBIS: Final[dict[str, str]] = {
    "UUID": "uuid",
    "UBIGINT": "uint64",
    "BIGINT": "int64",
    "INTEGER": "int32",
    "BOOLEAN": "boolean",
    "VARCHAR": "string",
    "MAP(VARCHAR, VARCHAR)": "map<string, string>",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, DuckDB type, meaning, and whether NULL is allowed."""

    name: str
    type: SqlType
    doc: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class HotAttribute:
    """A span attribute that has a typed column of its own.

    `key` is the semantic convention's current name. `older` are names that earlier conventions used: they fill the
    column when `key` is absent. A value whose type does not fit the column stays in the maps, and so does every `older`
    key, so that nothing is lost or renamed.
    """

    key: str
    type: Literal["VARCHAR", "BIGINT"]
    older: tuple[str, ...] = ()

    @property
    def column(self) -> str:
        """The column's name: the key with underscores."""
        return self.key.replace(".", "_").replace(":", "_").replace("-", "_")


HOT_ATTRIBUTES: Final = (
    HotAttribute("http.request.method", "VARCHAR", ("http.method",)),
    HotAttribute("http.route", "VARCHAR"),
    HotAttribute("http.response.status_code", "BIGINT", ("http.status_code",)),
    HotAttribute("url.full", "VARCHAR", ("http.url",)),
    HotAttribute("url.path", "VARCHAR", ("http.target",)),
    HotAttribute("rpc.system", "VARCHAR", ("rpc.system.name",)),
    HotAttribute("rpc.service", "VARCHAR"),
    HotAttribute("rpc.method", "VARCHAR"),
    HotAttribute("rpc.grpc.status_code", "BIGINT", ("rpc.response.status_code",)),
    HotAttribute("server.address", "VARCHAR", ("net.peer.name",)),
    HotAttribute("server.port", "BIGINT", ("net.peer.port",)),
    HotAttribute("network.peer.address", "VARCHAR", ("net.peer.ip", "net.sock.peer.addr")),
    HotAttribute("network.peer.port", "BIGINT", ("net.sock.peer.port",)),
    HotAttribute("client.address", "VARCHAR", ("http.client_ip",)),
    HotAttribute("user_agent.original", "VARCHAR", ("http.user_agent",)),
    HotAttribute("db.system.name", "VARCHAR", ("db.system",)),
    HotAttribute("messaging.system", "VARCHAR"),
    HotAttribute("peer.service", "VARCHAR"),
    HotAttribute("error.type", "VARCHAR"),
    # What Envoy writes into its spans.
    HotAttribute("component", "VARCHAR"),
    HotAttribute("upstream_cluster", "VARCHAR", ("upstream_cluster.name",)),
    HotAttribute("response_flags", "VARCHAR"),
    HotAttribute("guid:x-request-id", "VARCHAR"),
    # Ours: see provenance.names.
    HotAttribute("provenance.request.hash", "VARCHAR"),
    HotAttribute("provenance.request.size", "BIGINT"),
    HotAttribute("provenance.response.size", "BIGINT"),
    HotAttribute("provenance.request_id", "VARCHAR"),
    HotAttribute("provenance.stamp.status", "VARCHAR"),
    HotAttribute("provenance.stamp.kid", "VARCHAR"),
    HotAttribute("provenance.stamp.nonce", "VARCHAR"),
    HotAttribute("provenance.stamp.time_unix_ms", "BIGINT"),
    HotAttribute("provenance.peer.principal", "VARCHAR"),
)

_ATTRIBUTES = (
    Column("attributes", "MAP(VARCHAR, VARCHAR)", "the remaining attributes whose value is a string"),
    Column(
        "attributes_json",
        "MAP(VARCHAR, VARCHAR)",
        "the remaining attributes of every other type, each as JSON that keeps it: 5, 5.0, true, [..], {..}; "
        'bytes as {"bytesValue": "<base64>"}',
    ),
    Column("dropped_attributes_count", "BIGINT", "how many attributes the sender dropped"),
)

SPANS: Final = (
    Column("trace_id", "UUID", "16 bytes, big-endian; prints as the hex trace id with hyphens", required=True),
    Column("span_id", "UBIGINT", "8 bytes, big-endian", required=True),
    Column("parent_span_id", "UBIGINT", "NULL at a root"),
    Column("trace_state", "VARCHAR", "W3C tracestate, NULL when empty"),
    Column("flags", "BIGINT", "W3C trace flags and OTLP's is_remote bits"),
    Column("name", "VARCHAR", "span name", required=True),
    Column("kind", "VARCHAR", "UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER", required=True),
    Column("start_time_unix_nano", "BIGINT", "ns since the Unix epoch", required=True),
    Column("end_time_unix_nano", "BIGINT", "ns since the Unix epoch", required=True),
    Column("duration_ns", "BIGINT", "end - start; negative when the sender's clock stepped back", required=True),
    Column("status_code", "VARCHAR", "UNSET, OK, ERROR", required=True),
    Column("status_message", "VARCHAR", "NULL when empty"),
    Column("service_name", "VARCHAR", "resource service.name, 'unknown_service' if absent", required=True),
    Column("service_namespace", "VARCHAR", "resource service.namespace"),
    Column("service_instance_id", "VARCHAR", "resource service.instance.id, else k8s.pod.name, else host.name"),
    Column(
        "witness",
        "VARCHAR",
        "'proxy' for a span that a sidecar or gateway wrote (Envoy: component=proxy), else 'app'",
        required=True,
    ),
    Column("resource_id", "UBIGINT", "row of `resources`", required=True),
    Column("scope_id", "UBIGINT", "row of `scopes`", required=True),
    Column("received_unix_nano", "BIGINT", "when the collector received it, by the collector's clock", required=True),
    *(Column(a.column, a.type, f"attribute {a.key}") for a in HOT_ATTRIBUTES),
    *_ATTRIBUTES,
    Column("dropped_events_count", "BIGINT", "how many events the sender dropped"),
    Column("dropped_links_count", "BIGINT", "how many links the sender dropped"),
)

SPAN_EVENTS: Final = (
    Column("trace_id", "UUID", "of the span", required=True),
    Column("span_id", "UBIGINT", "of the span", required=True),
    Column("time_unix_nano", "BIGINT", "ns since the Unix epoch", required=True),
    Column("name", "VARCHAR", "event name", required=True),
    *_ATTRIBUTES,
)

SPAN_LINKS: Final = (
    Column("trace_id", "UUID", "of the span", required=True),
    Column("span_id", "UBIGINT", "of the span", required=True),
    Column("linked_trace_id", "UUID", "the other trace", required=True),
    Column("linked_span_id", "UBIGINT", "the other span", required=True),
    Column("trace_state", "VARCHAR", "NULL when empty"),
    Column("flags", "BIGINT", "as in spans"),
    *_ATTRIBUTES,
)

RESOURCES: Final = (
    Column("resource_id", "UBIGINT", "hash of the content, so that every process gives it the same id", required=True),
    Column("service_name", "VARCHAR", "service.name", required=True),
    Column("schema_url", "VARCHAR", "NULL when empty"),
    *_ATTRIBUTES,
)

SCOPES: Final = (
    Column("scope_id", "UBIGINT", "hash of the content", required=True),
    Column("name", "VARCHAR", "instrumentation scope", required=True),
    Column("version", "VARCHAR", "NULL when empty"),
    Column("schema_url", "VARCHAR", "NULL when empty"),
    *_ATTRIBUTES,
)

PROXY_RECORDS: Final = (
    Column(
        "record_id", "UBIGINT", "hash of source and position: reading a file again gives the same ids", required=True
    ),
    Column("source", "VARCHAR", "the file or stream that it was read from", required=True),
    Column("service_name", "VARCHAR", "the workload whose proxy wrote it", required=True),
    Column("service_instance_id", "VARCHAR", "which replica's proxy, where known"),
    Column("direction", "VARCHAR", "'inbound' or 'outbound' as the proxy's own workload sees it; NULL if not known"),
    Column("start_time_unix_nano", "BIGINT", "when the proxy saw the request begin", required=True),
    Column("duration_ns", "BIGINT", "until the last byte of the response; NULL if not logged"),
    Column("request_id", "VARCHAR", "x-request-id"),
    Column("trace_id", "UUID", "only where the mesh logs it; none does by default"),
    Column("method", "VARCHAR", "HTTP method"),
    Column("path", "VARCHAR", "path with query, as logged"),
    Column("authority", "VARCHAR", "host header"),
    Column("protocol", "VARCHAR", "HTTP/1.1, HTTP/2, ..."),
    Column("response_code", "BIGINT", "HTTP status; 0 when the connection ended without one"),
    Column("response_flags", "VARCHAR", "Envoy's flags, NULL for '-'"),
    Column("bytes_received", "BIGINT", "request body"),
    Column("bytes_sent", "BIGINT", "response body"),
    Column("upstream_host", "VARCHAR", "address:port that the proxy dialled"),
    Column("upstream_cluster", "VARCHAR", "Istio's names carry the direction: outbound|8000||host"),
    Column("upstream_local_address", "VARCHAR", "address:port"),
    Column("downstream_local_address", "VARCHAR", "address:port"),
    Column("downstream_remote_address", "VARCHAR", "address:port of the peer"),
    Column("requested_server_name", "VARCHAR", "SNI; NULL on plaintext"),
    Column("user_agent", "VARCHAR", "as logged"),
    Column("received_unix_nano", "BIGINT", "when the collector read it", required=True),
    Column("attributes", "MAP(VARCHAR, VARCHAR)", "every other key of the line, values as JSON text"),
    Column("format", "VARCHAR", "envoy, istio, envoy-gateway, linkerd, ztunnel; NULL: read by an older release"),
    Column(
        "downstream_peer",
        "VARCHAR",
        "authenticated identity of the peer as the proxy logged it: URI of the rightmost x-forwarded-client-cert element, "
        "Linkerd's client.id, ztunnel's src.identity; NULL on plaintext, or where it is not logged",
    ),
)

FLOWS: Final = (
    Column(
        "record_id",
        "UBIGINT",
        "hash of what was read and where: reading a file again gives the same ids",
        required=True,
    ),
    Column("source", "VARCHAR", "the file or stream that it was read from", required=True),
    Column("format", "VARCHAR", "zeek, vpcflow, hubble, conntrack, ztunnel", required=True),
    Column("start_time_unix_nano", "BIGINT", "when the flow began, ns since the Unix epoch", required=True),
    Column("duration_ns", "BIGINT", "until its last packet; NULL if not recorded"),
    Column("protocol", "VARCHAR", "tcp, udp, icmp, ...; lower case"),
    Column("source_address", "VARCHAR", "who opened it", required=True),
    Column("source_port", "INTEGER", "NULL where the protocol has none"),
    Column("destination_address", "VARCHAR", "whom it was opened to, as dialled", required=True),
    Column("destination_port", "INTEGER", "NULL where the protocol has none"),
    Column("destination_name", "VARCHAR", "SNI or DNS name, where the record has one"),
    Column("bytes_out", "BIGINT", "source to destination; IP bytes with headers where known, else payload"),
    Column("bytes_in", "BIGINT", "destination to source, likewise"),
    Column("packets_out", "BIGINT", "source to destination"),
    Column("packets_in", "BIGINT", "destination to source"),
    Column("state", "VARCHAR", "the format's own word: Zeek's conn_state, FORWARDED, DROPPED, ACCEPT, REJECT, ..."),
    Column("source_workload", "VARCHAR", "as the record names it"),
    Column("source_namespace", "VARCHAR", "Kubernetes namespace"),
    Column("source_identity", "VARCHAR", "SPIFFE id that the record says was authenticated"),
    Column("destination_workload", "VARCHAR", "as the record names it"),
    Column("destination_namespace", "VARCHAR", "Kubernetes namespace"),
    Column("destination_identity", "VARCHAR", "SPIFFE id that the record says was authenticated"),
    Column(
        "mesh_tls", "BOOLEAN", "TRUE: the record proves mesh mTLS or HBONE; FALSE: it proves plaintext; NULL: unknown"
    ),
    Column("trace_id", "UUID", "where the record carries one"),
    Column("node", "VARCHAR", "the machine that recorded it"),
    Column("received_unix_nano", "BIGINT", "when the collector read it", required=True),
    Column("attributes", "MAP(VARCHAR, VARCHAR)", "every other field of the record, values as JSON text"),
)

SOCKETS: Final = (
    Column("record_id", "UBIGINT", "of the socket: a later report of it replaces the earlier", required=True),
    Column("source", "VARCHAR", "the witness's name", required=True),
    Column("service_name", "VARCHAR", "the workload whose network namespace it is in", required=True),
    Column("service_instance_id", "VARCHAR", "which replica, where known"),
    Column("protocol", "VARCHAR", "tcp, udp", required=True),
    Column("direction", "VARCHAR", "outbound, inbound; NULL: it listens"),
    Column("local_address", "VARCHAR", "of the workload", required=True),
    Column("local_port", "INTEGER", "of the workload", required=True),
    Column("remote_address", "VARCHAR", "NULL: it listens"),
    Column("remote_port", "INTEGER", "NULL: it listens"),
    Column("state", "VARCHAR", "ESTABLISHED, TIME_WAIT, LISTEN, ...; the last that was seen", required=True),
    Column("capture", "VARCHAR", "captured, bypassed, not_mesh; NULL: it listens, or nothing could be told"),
    Column("proxy_port", "INTEGER", "the proxy's port that has the counterpart"),
    Column("uid", "BIGINT", "the user that the socket belongs to"),
    Column("first_seen_unix_nano", "BIGINT", "the first look that found it", required=True),
    Column("last_seen_unix_nano", "BIGINT", "the last look that found it", required=True),
    Column("received_unix_nano", "BIGINT", "when the collector received the report", required=True),
    Column("attributes", "MAP(VARCHAR, VARCHAR)", "what else the witness knows, values as JSON text"),
)

SOCKET_WATCHES: Final = (
    Column("source", "VARCHAR", "the witness's name", required=True),
    Column("service_name", "VARCHAR", "the workload that it watched", required=True),
    Column("service_instance_id", "VARCHAR", "which replica, where known"),
    Column("addresses", "VARCHAR", "the workload's own addresses, with commas between them"),
    Column("since_unix_nano", "BIGINT", "it looked from then on: absence counts only from here", required=True),
    Column("until_unix_nano", "BIGINT", "... to there", required=True),
    Column("interval_ns", "BIGINT", "between two looks"),
    Column("samples", "BIGINT", "how many looks"),
    Column("proxy_found", "BOOLEAN", "whether any port of a proxy was listening"),
    Column("received_unix_nano", "BIGINT", "when the collector received the report", required=True),
)

WORKLOADS: Final = (
    Column("address", "VARCHAR", "an address of the workload", required=True),
    Column("service_name", "VARCHAR", "the workload that has it", required=True),
    Column("namespace", "VARCHAR", "Kubernetes namespace"),
    Column("pod", "VARCHAR", "which pod"),
    Column("principal", "VARCHAR", "SPIFFE id or Linkerd identity"),
    Column("mesh", "VARCHAR", "istio, linkerd, ambient, none; NULL: unknown"),
    Column("host_network", "BOOLEAN", "whether the address is its node's: then others share it"),
    Column("first_seen_unix_nano", "BIGINT", "from when the workload had it, as far as known"),
    Column("last_seen_unix_nano", "BIGINT", "until when it is known to have had it"),
    Column("source", "VARCHAR", "the file or stream that says so", required=True),
    Column("received_unix_nano", "BIGINT", "when the collector read it", required=True),
    Column("attributes", "MAP(VARCHAR, VARCHAR)", "annotations that decide what is captured, values as they are"),
)

INGEST_ERRORS: Final = (
    Column("received_unix_nano", "BIGINT", "when it was refused", required=True),
    Column("source", "VARCHAR", "'otlp' or the access log's path", required=True),
    Column("reason", "VARCHAR", "what was wrong, without the data", required=True),
    Column("count", "BIGINT", "how many spans or lines", required=True),
)

EGRESS_ALLOW: Final = (
    Column("service_name", "VARCHAR", "the workload that may; NULL: every workload"),
    Column(
        "destination", "VARCHAR", "host name, *.suffix, address or CIDR block; empty: the list is empty", required=True
    ),
    Column("port", "INTEGER", "NULL: every port"),
)

ACCESS_LOGS: Final = (
    Column("source", "VARCHAR", "the access log's path, as in proxy_records", required=True),
    Column("service_name", "VARCHAR", "the workload whose proxy writes it", required=True),
    Column("offset_bytes", "BIGINT", "everything before it is committed: where reading goes on", required=True),
    Column("head_bytes", "BIGINT", "how many first bytes of the file `head_hash` covers", required=True),
    Column("head_hash", "VARCHAR", "hex SHA-256 of them: tells this file from the one that replaced it", required=True),
    Column("read_unix_nano", "BIGINT", "when it was last read", required=True),
)

TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "spans": SPANS,
    "span_events": SPAN_EVENTS,
    "span_links": SPAN_LINKS,
    "resources": RESOURCES,
    "scopes": SCOPES,
    "proxy_records": PROXY_RECORDS,
    "flows": FLOWS,
    "sockets": SOCKETS,
    "socket_watches": SOCKET_WATCHES,
    "workloads": WORKLOADS,
    "ingest_errors": INGEST_ERRORS,
    "egress_allow": EGRESS_ALLOW,
    "access_logs": ACCESS_LOGS,
}

TRACE_ARRIVALS: Final = (
    Column("trace_id_low", "UBIGINT", "the last 8 bytes of the trace id, big-endian", required=True),
    Column("first_received_unix_nano", "BIGINT", "no span of it that came then was received earlier", required=True),
    Column("last_received_unix_nano", "BIGINT", "nor later", required=True),
)

ATTRIBUTE_KEYS: Final = (
    Column("attribute_key_id", "UBIGINT", "hash of the key and of where it is stored", required=True),
    Column("key", "VARCHAR", "a key of a span's attributes; empty: there were more than are listed", required=True),
    Column("stored_in", "VARCHAR", "the column of `spans`: 'attributes' or 'attributes_json'", required=True),
    Column("first_received_unix_nano", "BIGINT", "when it was first received", required=True),
)

DERIVED_TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "trace_arrivals": TRACE_ARRIVALS,
    "attribute_keys": ATTRIBUTE_KEYS,
}
"""What `spans` says already, kept so that a question need not read all of them: written with the spans, in one transaction, by
`collector.store.derived`, and made anew by a migration. Nothing arrives for them, and where a table
of them is missing or empty nothing is lost.

`trace_arrivals` has a row for every trace in every group of spans that was written together: the trace's spans were
received in one of its ranges. Half an id suffices, since who shares it only widens the range.
`attribute_keys` has the keys that live in the maps; hot attributes are columns, and known without it."""

MACROS: Final = {
    "spans_of_trace": """\
CREATE MACRO IF NOT EXISTS spans_of_trace(id) AS TABLE
SELECT spans.* FROM spans JOIN (
  SELECT coalesce(min(first_received_unix_nano), -9223372036854775808) AS arrived_from,
    coalesce(max(last_received_unix_nano), 9223372036854775807) AS arrived_until
  FROM trace_arrivals
  WHERE trace_id_low = ('0x' || right(replace((id::UUID)::VARCHAR, '-', ''), 16))::UBIGINT
) ON received_unix_nano >= arrived_from AND received_unix_nano <= arrived_until
WHERE trace_id = id::UUID""",
}
"""What people who write SQL are given: `FROM spans_of_trace('4bf92f3577b34da6a3ce929d0e0e4736')` has the columns of `spans`
and the rows of this trace, out of millions in the time of a few thousand."""

EVIDENCE_SINCE_KEY: Final = "evidence_since_unix_nano"
"""In the table `meta` (key, value): what was received before then was removed; not there while nothing was."""

CONTENT_KEYS: Final = {"resources": "resource_id", "scopes": "scope_id", "attribute_keys": "attribute_key_id"}
"""Tables whose rows repeat with every request and are stored once, by their content hash."""

REPLACED_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "access_logs": ("source",),
    "sockets": ("record_id",),
    "socket_watches": ("source", "service_name", "since_unix_nano"),
    "workloads": ("address", "service_name", "source"),
}
"""Tables where an arriving row replaces the older row with the same key: columns that are never NULL."""

_EVERY: Final = TABLES | DERIVED_TABLES


def ddl(table: str) -> str:
    """The CREATE TABLE statement of one table."""
    columns = ",\n  ".join(f"{c.name} {c.type}{' NOT NULL' if c.required else ''}" for c in _EVERY[table])
    return f"CREATE TABLE IF NOT EXISTS {table} (\n  {columns}\n)"


def arrow_schema(table: str) -> pa.Schema:
    """The schema that record batches for this table have."""
    return pa.schema([pa.field(c.name, _ARROW[c.type], nullable=not c.required) for c in _EVERY[table]])


def ibis_schema(table: str) -> dict[str, str]:
    """Column name to Ibis type, for `ibis.table(ibis_schema("spans"), name="spans")`."""
    return {c.name: _IBIS[c.type] for c in _EVERY[table]}

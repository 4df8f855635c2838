"""OTLP log requests that are proxies' access logs → rows of `proxy_records`. Sans-I/O: bytes and a time in, a table out.

What sends them, and what of it names the log, its workload and its fields (read in their sources, July 2026):

- Envoy, `envoy.access_loggers.open_telemetry`: resource attributes `log_name`, `zone_name`, `cluster_name`, `node_name`;
  the configured format is the body, the configured attributes are the record's; every value a string, `-` for none.
- Istio, `envoyOtelAls`: its default text format in the body, `labels` as attributes, and **no resource at all**
  (`disable_builtin_labels`). A label names the workload: `service.name: "%ENVIRONMENT(ISTIO_META_WORKLOAD_NAME)%"`.
- Envoy Gateway: its JSON in the body, `k8s.namespace.name` and `k8s.pod.name` as attributes, `log_name` in the resource.
- An OpenTelemetry Collector that reads sidecars' standard output: the line in the body, the rest as its processors say.

Possible outcomes of `decode_access_logs`:

- `DecodedAccessLogs`: every record is a row or counted in `rejected`, with the reason. What was amended in a row that was
  kept is counted in `notes`.
- `DecodeError`: the bytes are not a log request, or exceed what is accepted. Nothing else is raised.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import numpy as np
import ptars
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from collector.errors import DecodeError
from collector.otlp import projection, values
from collector.otlp.origins import UNKNOWN_SERVICE, Origin, read_resource
from collector.otlp.projection import Projected, lengths, offsets
from collector.witnesses.envoy import (
    KNOWN_KEYS,
    MAX_LINE_BYTES,
    Direction,
    Row,
    direction_of,
    read_fields,
    row_of,
    to_batch,
)

LOG_NAME: Final = "otel_envoy_accesslog"
"""The `log_name` that Istio and Envoy Gateway give by default, and Envoy's documentation."""

UNKNOWN_PROXY: Final = f"{UNKNOWN_SERVICE}:envoy"
"""OpenTelemetry's form for a service that nobody named (semantic conventions, `service.name`): no app is called that."""

MAX_ATTRIBUTES: Final = 1_000
"""Attributes of one record: they become one dictionary. Istio's format has 24."""

NOT_AN_ACCESS_LOG: Final = (
    f"not an access log: no log_name {LOG_NAME}, no line in a default format of Envoy or Istio, none of Envoy's fields "
    "as attributes; other logs are not stored here"
)
UNREADABLE: Final = (
    "access log in an unknown format: log Envoy's or Istio's default text, JSON, or attributes with Istio's key names"
)
TOO_LONG: Final = "access log line too long"
TOO_MANY: Final = f"more than {MAX_ATTRIBUTES} attributes"
NO_WORKLOAD: Final = (
    f"no workload is named, stored as {UNKNOWN_PROXY}: let the proxy log an attribute service.name, as in Istio's "
    'labels, service.name: "%ENVIRONMENT(ISTIO_META_WORKLOAD_NAME)%"'
)
NOT_UTF8: Final = "string is not UTF-8: the bad bytes were replaced"

_PROOF: Final = frozenset(
    {
        "downstream_local_address",
        "downstream_remote_address",
        "response_code_details",
        "response_flags",
        "upstream_cluster",
        "upstream_host",
        "upstream_transport_failure_reason",
    }
)
"""Keys that proxies log and applications do not: two of them make an access log, whatever its name."""

_BUILT_IN: Final = frozenset({"cluster_name", "log_name", "node_name", "zone_name"})
_CHUNK: Final = 4096
"""Records that are held as Python objects at once."""

_F: Final = descriptor_pb2.FieldDescriptorProto

_DECLARATIONS: Final[dict[str, tuple[tuple[str, int, int | str], ...]]] = {
    # As in `projection`, whose header says why: name (trailing *: repeated), field number, type.
    "LogsRequest": (("resource_logs*", 1, _F.TYPE_BYTES),),
    "ResourceLogs": (
        ("resource", 1, _F.TYPE_BYTES),
        ("scope_logs*", 2, _F.TYPE_BYTES),
        ("schema_url", 3, _F.TYPE_BYTES),
    ),
    "ScopeLogs": (("log_records*", 2, _F.TYPE_BYTES),),
    "LogRecord": (
        ("time_unix_nano", 1, _F.TYPE_FIXED64),
        ("body", 5, "Value"),
        ("attributes*", 6, _F.TYPE_BYTES),
        ("trace_id", 9, _F.TYPE_BYTES),
    ),
    "KeyAndValue": (("key", 1, _F.TYPE_BYTES), ("value", 2, "Value")),
    "Value": (
        ("string_value", 1, _F.TYPE_BYTES),
        ("bool_value", 2, _F.TYPE_BOOL),
        ("int_value", 3, _F.TYPE_INT64),
        ("double_value", 4, _F.TYPE_DOUBLE),
        ("array_value", 5, _F.TYPE_BYTES),
        ("kvlist_value", 6, _F.TYPE_BYTES),
        ("bytes_value", 7, _F.TYPE_BYTES),
    ),
}


def _declare() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="access_logs.proto", package="access_logs", syntax="proto3")
    for message_name, fields in _DECLARATIONS.items():
        message = file.message_type.add(name=message_name)
        is_value = message_name == "Value"
        if is_value:
            message.oneof_decl.add(name="value")
        for name, number, kind in fields:
            one = message.field.add(name=name.rstrip("*"), number=number)
            one.label = _F.LABEL_REPEATED if name.endswith("*") else _F.LABEL_OPTIONAL
            one.type = _F.TYPE_MESSAGE if isinstance(kind, str) else kind  # type: ignore[assignment]
            if isinstance(kind, str):
                one.type_name = f".access_logs.{kind}"
            if is_value:
                one.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("access_logs.proto")


_FILE: Final = _declare()
_HANDLERS: Final = ptars.HandlerPool([_FILE])


class _Declared(Projected):
    """A message that is declared here, with the precautions of `projection`."""

    __slots__ = ()

    def __init__(self, name: str) -> None:  # its own declarations instead of projection's, hence no super()
        self.name = name
        self._class = message_factory.GetMessageClass(_FILE.message_types_by_name[name])
        self._handler = _HANDLERS.get_for_message(_FILE.message_types_by_name[name])


_REQUEST: Final = _Declared("LogsRequest")
_RESOURCE_LOGS: Final = _Declared("ResourceLogs")
_SCOPE_LOGS: Final = _Declared("ScopeLogs")
_LOG_RECORD: Final = _Declared("LogRecord")
_KEY_AND_VALUE: Final = _Declared("KeyAndValue")


@dataclass(frozen=True, slots=True)
class DecodedAccessLogs:
    """What a log request said.

    Attributes:
        batches: `proxy_records` with its `arrow_schema`, possibly without rows.
        record_count: Records that were accepted: rows of `proxy_records`.
        rejected: Records that were not, by reason.
        notes: What was amended in the accepted ones, by reason.
    """

    batches: dict[str, pa.RecordBatch]
    record_count: int
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Sender:
    """What a resource says of its records: whether they are named as access logs, and whose they are.

    Attributes:
        is_named: Its `log_name` is `LOG_NAME`.
        service_name: None when it names no workload.
        instance_id: Pod, instance or node; None when it names none.
        direction: What it says for all of its records.
        attributes: Every other attribute, values as JSON text.
        salt: Makes equal records of two senders two records.
    """

    is_named: bool
    service_name: str | None
    instance_id: str | None
    direction: Direction | None
    attributes: tuple[tuple[str, str], ...]
    salt: bytes


@dataclass(frozen=True, slots=True)
class _Record:
    """One log record: its time, its body (text, fields or nothing) and its attributes."""

    time_unix_nano: int
    trace_id: bytes
    body: object
    attributes: dict[str, object]


class _RejectedError(Exception):
    """This one record is refused; the reason."""


def decode_access_logs(payload: bytes, *, received_unix_nano: int) -> DecodedAccessLogs:
    """A serialised ExportLogsServiceRequest as `proxy_records`. Raises DecodeError, and nothing else, whatever the bytes."""
    notes: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    senders, encoded, owner = _open(payload, notes)
    ids = _Ids()
    batches = [to_batch([])]
    for start in range(0, len(encoded), _CHUNK):
        chunk = encoded[start : start + _CHUNK]
        rows: list[Row] = []
        for index, record in _records(chunk, rejected, notes):
            sender = senders[owner[start + index]]
            try:
                row = _row(record, sender, notes)
            except _RejectedError as refused:
                rejected[str(refused)] += 1
                continue
            row["record_id"] = ids.of(chunk[index], sender.salt)
            row["received_unix_nano"] = received_unix_nano
            rows.append(row)
        batches.append(to_batch(rows))
    [batch] = pa.Table.from_batches(batches).combine_chunks().to_batches() or [batches[0]]
    return DecodedAccessLogs({"proxy_records": batch}, len(batch), dict(rejected), dict(notes))


class _Ids:
    """Record ids: hashes of sender and content, so that a request that is sent again gives the same ids.

    Records of one request that are equal to the last bit (a format without time and id) are told apart by their order.
    """

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    def of(self, record: bytes, salt: bytes) -> int:
        """The id of the next record."""
        number = int.from_bytes(hashlib.blake2b(record, digest_size=8, salt=salt).digest())
        earlier = self._seen[number]
        self._seen[number] += 1
        if not earlier:
            return number
        return int.from_bytes(hashlib.blake2b(b"%d %d" % (number, earlier), digest_size=8, salt=salt).digest())


# --- whose records ----------------------------------------------------------------------------------------------------


def _open(payload: bytes, notes: Counter[str]) -> tuple[list[_Sender], list[bytes], list[int]]:
    """Senders, records still serialised, and whose each record is."""
    senders: list[_Sender] = []
    encoded: list[bytes] = []
    owner: list[int] = []
    request = _REQUEST.parse(payload)
    _RESOURCE_LOGS.limit(len(request.resource_logs), projection.MAX_ORIGINS)
    scopes = 0
    for encoded_resource in request.resource_logs:
        resource_logs = _RESOURCE_LOGS.parse(encoded_resource)
        resource = read_resource(resource_logs.resource, resource_logs.schema_url)
        notes.update(dict(resource.notes))
        senders.append(_sender(resource))
        scopes += len(resource_logs.scope_logs)
        _SCOPE_LOGS.limit(scopes, projection.MAX_ORIGINS)
        for encoded_scope in resource_logs.scope_logs:
            records = _SCOPE_LOGS.parse(encoded_scope).log_records
            _LOG_RECORD.limit(len(encoded) + len(records), projection.MAX_ROWS)
            encoded.extend(records)
            owner.extend([len(senders) - 1] * len(records))
    return senders, encoded, owner


def _sender(resource: Origin) -> _Sender:
    node, cluster = resource.get("node_name"), resource.get("cluster_name")
    pod, namespace = _istio_node(node)
    if cluster and namespace:
        cluster = cluster.removesuffix(f".{namespace}")  # Istio names the cluster `workload.namespace`
    direction = _direction_word(resource.get("direction"))
    consumed = {"log_name", "service.name", "service.instance.id", *({"direction"} if direction else ())}
    rest = [(key, json.dumps(text, ensure_ascii=False)) for key, text in resource.texts if text]
    return _Sender(
        is_named=resource.get("log_name") == LOG_NAME,
        service_name=_named(resource.get("service.name")) or cluster,
        instance_id=resource.instance_id or pod or node,
        direction=direction,
        attributes=tuple(pair for pair in (*rest, *resource.others) if pair[0] not in consumed),
        salt=resource.id.to_bytes(8),
    )


def _istio_node(node: str | None) -> tuple[str | None, str | None]:
    """Pod and namespace of `sidecar~10.44.1.23~sleep-5f4d.foo~foo.svc.cluster.local`, Istio's form of a node id."""
    match (node or "").split("~"):
        case [_, _, workload, _] if "." in workload:
            pod, _, namespace = workload.rpartition(".")
            return pod, namespace
        case _:
            return None, None


def _named(service: object) -> str | None:
    """A service name that is one: SDKs and Collectors write `unknown_service` where nobody said it."""
    known = isinstance(service, str) and service not in {"", "-"} and service.partition(":")[0] != UNKNOWN_SERVICE
    return str(service) if known else None


def _direction_word(word: object) -> Direction | None:
    match str(word).lower():
        case "inbound":
            return "inbound"
        case "outbound":
            return "outbound"
        case _:
            return None


# --- what they carry --------------------------------------------------------------------------------------------------


def _records(encoded: list[bytes], rejected: Counter[str], notes: Counter[str]) -> Iterator[tuple[int, _Record]]:
    """The records with their indices, without those that have too many attributes."""
    columns = _LOG_RECORD.rows(pa.array(encoded, pa.binary()))
    counts = lengths(columns.column("attributes"))
    kept = np.flatnonzero(counts <= MAX_ATTRIBUTES)
    if len(kept) < len(encoded):
        rejected[TOO_MANY] += len(encoded) - len(kept)
        columns = columns.take(pa.array(kept))
    lists = columns.column("attributes")
    keys, plain = _attributes(lists.flatten(), notes)
    ends = offsets(lists).tolist()
    bodies = _bodies(columns.column("body"), [encoded[i] for i in kept.tolist()], notes)
    times = columns.column("time_unix_nano").to_pylist()
    trace_ids = columns.column("trace_id").to_pylist()
    for place, index in enumerate(kept.tolist()):
        first, last = ends[place], ends[place + 1]
        attributes = dict(zip(keys[first:last], plain[first:last], strict=True))
        yield index, _Record(times[place], trace_ids[place], bodies[place], attributes)


def _attributes(encoded: pa.BinaryArray, notes: Counter[str]) -> tuple[list[str], list[object]]:
    """Key and value of each attribute, values as JSON knows them; None for a value that is absent."""
    if len(encoded) == 0:
        return [], []
    columns = _KEY_AND_VALUE.rows(encoded)
    keys = _texts(columns.column("key"), notes)
    plain = _texts(columns.column("value").field("string_value"), notes)
    for index in _not_only_text(columns.column("value")):
        value = _plain(_KEY_AND_VALUE.parse(encoded[index].as_py()).value, notes)
        # A Collector that parsed a JSON line sends 200.0 for 200.
        whole = isinstance(value, float) and keys[index] in KNOWN_KEYS and value.is_integer()
        plain[index] = int(value) if whole else value  # type: ignore[call-overload]
    return keys, plain


def _bodies(column: pa.StructArray, encoded: list[bytes], notes: Counter[str]) -> list[object]:
    bodies = _texts(column.field("string_value"), notes)
    for index in _not_only_text(column):
        bodies[index] = _plain(_LOG_RECORD.parse(encoded[index]).body, notes)
    return bodies


def _not_only_text(column: pa.StructArray) -> list[int]:
    """Where a value has another member than `string_value`: those few are parsed by upb, which knows which one counts."""
    members = [column.field(i) for i in range(1, column.type.num_fields)]
    present = [np.asarray(m.is_valid()) for m in members if m.null_count < len(m)]
    return np.flatnonzero(np.any(present, axis=0)).tolist() if present else []


def _texts(column: pa.BinaryArray, notes: Counter[str]) -> list[Any]:
    try:
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        texts = [None if raw is None else values.text(raw) for raw in column.to_pylist()]
        notes[NOT_UTF8] += sum(text is not None and "\N{REPLACEMENT CHARACTER}" in text for text in texts)
        return texts


def _plain(value: Any, notes: Counter[str]) -> object:
    """A value as JSON knows it; what is too deep stays bytes, with a note."""
    return json.loads(values.value_json(value, notes))


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(record: _Record, sender: _Sender, notes: Counter[str]) -> Row:
    """The row, without its id and its arrival. Raises _RejectedError."""
    if record.time_unix_nano >= 1 << 63:
        raise _RejectedError("a time is beyond 2^63 - 1 ns")
    fields = _fields(record, sender)
    name, instance = _named(fields.pop("service.name", None)), fields.pop("service.instance.id", None)
    instance = instance or fields.get("k8s.pod.name")
    said = _direction_word(fields.get("direction"))
    if said:
        del fields["direction"]
    try:
        row = row_of(fields, start_time_unix_nano=record.time_unix_nano or None)
    except DecodeError as e:
        raise _RejectedError(f"access log: {e}") from None
    row["service_name"] = name or sender.service_name
    row["service_instance_id"] = instance if isinstance(instance, str) else sender.instance_id
    if row["service_name"] is None:
        row["service_name"] = UNKNOWN_PROXY
        notes[NO_WORKLOAD] += 1
    row["source"] = f"otlp:{row['service_instance_id'] or row['service_name']}"
    row["direction"] = direction_of(row["upstream_cluster"]) or said or sender.direction
    if len(record.trace_id) == 16 and any(record.trace_id):
        row["trace_id"] = UUID(bytes=record.trace_id)
    if sender.attributes:
        row["attributes"] = [*row["attributes"], *(pair for pair in sender.attributes if pair[0] not in fields)]  # type: ignore[misc]
    return row


def _fields(record: _Record, sender: _Sender) -> dict[str, object]:
    """What body and attributes log together, by key. Raises _RejectedError where that is no access log."""
    fields, is_line = _body_fields(record.body)
    for key, value in record.attributes.items():
        if key not in fields or value not in (None, "", "-"):
            fields[key] = value
    is_named = sender.is_named or fields.get("log_name") == LOG_NAME
    if not is_line and len(_PROOF.intersection(fields)) < 2 and not is_named:
        raise _RejectedError(NOT_AN_ACCESS_LOG)
    if KNOWN_KEYS.isdisjoint(fields):
        raise _RejectedError(UNREADABLE)
    return fields


def _body_fields(body: object) -> tuple[dict[str, object], bool]:
    """The body's fields, and whether it is a line in a default text format of Envoy or Istio."""
    match body:
        case str() if len(body) > MAX_LINE_BYTES:
            raise _RejectedError(TOO_LONG)
        case str() if text := body.strip():
            try:
                return read_fields(text), not text.startswith("{")
            except DecodeError:
                return {"body": text}, False  # a format of the operator's own: the attributes may say enough
        case dict():
            return dict(body), False
        case _:
            return {}, False

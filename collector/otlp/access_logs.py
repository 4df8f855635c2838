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
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import pyarrow as pa

from collector.errors import DecodeError
from collector.otlp.log_records import LogRecord, open_request, read_records
from collector.otlp.origins import UNKNOWN_SERVICE, Origin
from collector.witnesses.envoy import (
    KNOWN_KEYS,
    MAX_LINE_BYTES,
    Direction,
    Row,
    read_fields,
    row_of,
    set_direction,
    to_batch,
)

LOG_NAME: Final = "otel_envoy_accesslog"
"""The `log_name` that Istio and Envoy Gateway give by default, and Envoy's documentation."""

UNKNOWN_PROXY: Final = f"{UNKNOWN_SERVICE}:envoy"
"""OpenTelemetry's form for a service that nobody named (semantic conventions, `service.name`): no app is called that."""

NOT_AN_ACCESS_LOG: Final = (
    f"not an access log: no log_name {LOG_NAME}, no line in a default format of Envoy or Istio, none of Envoy's fields "
    "as attributes; other logs are not stored here"
)
UNREADABLE: Final = (
    "access log in an unknown format: log Envoy's or Istio's default text, JSON, or attributes with Istio's key names"
)
TOO_LONG: Final = "access log line too long"
NO_WORKLOAD: Final = (
    f"no workload is named, stored as {UNKNOWN_PROXY}: let the proxy log an attribute service.name, as in Istio's "
    'labels, service.name: "%ENVIRONMENT(ISTIO_META_WORKLOAD_NAME)%"'
)

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

_CHUNK: Final = 4096
"""Records that are held as Python objects at once."""


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


class _RejectedError(Exception):
    """This one record is refused; the reason."""


def decode_access_logs(payload: bytes, *, received_unix_nano: int) -> DecodedAccessLogs:
    """A serialised ExportLogsServiceRequest as `proxy_records`. Raises DecodeError, and nothing else, whatever the bytes."""
    notes: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    resources, encoded, owner = open_request(payload, notes)
    senders = [_sender(resource) for resource in resources]
    ids = _Ids()
    batches = [to_batch([])]
    for start in range(0, len(encoded), _CHUNK):
        chunk = encoded[start : start + _CHUNK]
        rows: list[Row] = []
        for index, record in read_records(chunk, rejected, notes):
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


def _sender(resource: Origin) -> _Sender:
    node, cluster = resource.get("node_name"), resource.get("cluster_name")
    pod, namespace = _istio_node(node)
    if cluster and namespace:
        cluster = cluster.removesuffix(f".{namespace}")  # Istio names the cluster `workload.namespace`
    direction = _direction_word(resource.get("direction"))
    is_named = resource.get("log_name") == LOG_NAME
    consumed = {"service.name", "service.instance.id"}
    consumed |= ({"log_name"} if is_named else set()) | ({"direction"} if direction else set())
    rest = [(key, json.dumps(text, ensure_ascii=False)) for key, text in resource.texts if text]
    return _Sender(
        is_named=is_named,
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


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(record: LogRecord, sender: _Sender, notes: Counter[str]) -> Row:
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
    set_direction(row, said or sender.direction)
    if len(record.trace_id) == 16 and any(record.trace_id):
        row["trace_id"] = UUID(bytes=record.trace_id)
    if sender.attributes:
        row["attributes"] = [*row["attributes"], *(pair for pair in sender.attributes if pair[0] not in fields)]  # type: ignore[misc]
    return row


def _fields(record: LogRecord, sender: _Sender) -> dict[str, object]:
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

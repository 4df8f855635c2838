"""Resources and instrumentation scopes: who wrote the spans. Few in a request and the same in the next, so cached."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa

from collector.errors import DecodeError
from collector.otlp import values
from collector.otlp.projection import KEY_VALUE, RESOURCE, SCOPE, Projected
from collector.schema import arrow_schema

MAX_ATTRIBUTES: Final = 10_000
"""Attributes of one resource or scope: they are decoded one by one. OpenTelemetry's SDKs send fewer than 50."""

_CACHED_BYTES: Final = 16_384
"""Longer ones are decoded each time, so that the caches stay below a few dozen MiB."""

UNKNOWN_SERVICE: Final = "unknown_service"
_INSTANCE_KEYS: Final = ("service.instance.id", "k8s.pod.name", "host.name")
_PROXY_SERVICE: Final = "linkerd-proxy"
"""Linkerd's proxy: `service.name` by default (LINKERD2_PROXY_TRACE_SERVICE_NAME may say otherwise)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A resource or a scope, as its row in `resources` or `scopes` says it.

    Attributes:
        id: 64 bits of BLAKE2b over its content, whatever the order of its attributes.
        name: A resource's service name, a scope's name.
        version: A scope's version.
        schema_url: None when empty.
        texts: Attributes with string values.
        others: Attributes with other values, as JSON.
        dropped: How many attributes the sender dropped.
        is_proxy: Whether the spans below it were written by a sidecar or gateway.
        notes: What was amended, as (reason, how often).
    """

    id: int
    name: str
    version: str | None
    schema_url: str | None
    texts: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, str], ...]
    dropped: int
    is_proxy: bool
    notes: tuple[tuple[str, int], ...]

    def get(self, key: str) -> str | None:
        """A string attribute; None when it is absent, empty or of another type."""
        return dict(self.texts).get(key) or None

    @property
    def instance_id(self) -> str | None:
        """service.instance.id, else k8s.pod.name, else host.name."""
        return next((found for key in _INSTANCE_KEYS if (found := self.get(key))), None)


def read_resource(encoded: bytes, schema_url: bytes) -> Origin:
    """A serialised Resource. Raises DecodeError."""
    cacheable = len(encoded) + len(schema_url) <= _CACHED_BYTES
    return (_resource if cacheable else _resource.__wrapped__)(encoded, schema_url)


def read_scope(encoded: bytes, schema_url: bytes) -> Origin:
    """A serialised InstrumentationScope. Raises DecodeError."""
    cacheable = len(encoded) + len(schema_url) <= _CACHED_BYTES
    return (_scope if cacheable else _scope.__wrapped__)(encoded, schema_url)


@lru_cache(maxsize=1024)
def _resource(encoded: bytes, schema_url: bytes) -> Origin:
    message = _parsed(RESOURCE, encoded, "resource")
    texts, others, notes = _attributes(message, "resource")
    by_key = dict(texts)
    service = by_key.get("service.name") or UNKNOWN_SERVICE
    return Origin(
        id=_content_id("resource", values.text(schema_url), texts, others, message.dropped_attributes_count),
        name=service,
        version=None,
        schema_url=values.text(schema_url) or None,
        texts=texts,
        others=others,
        dropped=message.dropped_attributes_count,
        is_proxy=by_key.get("telemetry.sdk.name") == "envoy" or service == _PROXY_SERVICE,
        notes=notes,
    )


@lru_cache(maxsize=1024)
def _scope(encoded: bytes, schema_url: bytes) -> Origin:
    message = _parsed(SCOPE, encoded, "scope")
    texts, others, notes = _attributes(message, "scope")
    name, version = values.text(message.name), values.text(message.version)
    url = values.text(schema_url)
    return Origin(
        id=_content_id("scope", name, version, url, texts, others, message.dropped_attributes_count),
        name=name,
        version=version or None,
        schema_url=url or None,
        texts=texts,
        others=others,
        dropped=message.dropped_attributes_count,
        is_proxy=name == _PROXY_SERVICE,
        notes=notes,
    )


def _parsed(kind: Projected, encoded: bytes, what: str) -> Any:
    """The message; raises DecodeError. A large one is counted first: of 33 million attributes, a list would take a gigabyte."""
    if len(encoded) > _CACHED_BYTES:
        _limit(len(kind.rows(pa.array([encoded], pa.binary())).column("attributes").flatten()), what)
    return kind.parse(encoded)


def _limit(attributes: int, what: str) -> None:
    if attributes > MAX_ATTRIBUTES:
        raise DecodeError(f"a {what} has {attributes} attributes, at most {MAX_ATTRIBUTES} are accepted")


_Pairs = tuple[tuple[str, str], ...]


def _attributes(message: Any, what: str) -> tuple[_Pairs, _Pairs, tuple[tuple[str, int], ...]]:
    """Strings, others as JSON, notes; of a key that is there twice the last wins, as for spans."""
    _limit(len(message.attributes), what)
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    notes: dict[str, int] = {}
    for encoded in message.attributes:
        pair = KEY_VALUE.parse(encoded)
        key = values.text(pair.key)
        texts.pop(key, None)
        others.pop(key, None)
        if pair.value.WhichOneof("value") == "string_value":
            texts[key] = values.text(pair.value.string_value)
        else:
            others[key] = values.value_json(pair.value, notes)
    return tuple(sorted(texts.items())), tuple(sorted(others.items())), tuple(notes.items())


def _content_id(*content: object) -> int:
    canonical = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(canonical.encode(), digest_size=8).digest(), "big")


# --- rows -------------------------------------------------------------------------------------------------------------


def resource_rows(resources: list[Origin]) -> pa.RecordBatch:
    """Rows of `resources`, each content once."""
    rows = [
        {
            "resource_id": r.id,
            "service_name": r.name,
            "schema_url": r.schema_url,
            "attributes": r.texts,
            "attributes_json": r.others,
            "dropped_attributes_count": r.dropped,
        }
        for r in {r.id: r for r in resources}.values()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema("resources"))


def scope_rows(scopes: list[Origin]) -> pa.RecordBatch:
    """Rows of `scopes`, each content once."""
    rows = [
        {
            "scope_id": s.id,
            "name": s.name,
            "version": s.version,
            "schema_url": s.schema_url,
            "attributes": s.texts,
            "attributes_json": s.others,
            "dropped_attributes_count": s.dropped,
        }
        for s in {s.id: s for s in scopes}.values()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema("scopes"))

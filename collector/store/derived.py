"""What a group of spans adds to the derived tables: pure, from Arrow to Arrow, with nothing done once a span in Python.

    derived_rows(batches) -> {"trace_arrivals": ..., "attribute_keys": ...}

The rows go into the same transaction as the spans that they come from. `attribute_keys` repeats with every group, like resources
and scopes, and is stored once by its id (`schema.CONTENT_KEYS`).

On groups of 8,192 spans in 875 traces it takes 0.06 µs of processor time a span, and inserting what five groups give together
0.08 µs; one such insert for each group would take 0.22 µs.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector import schema

MAPS: Final = ("attributes", "attributes_json")

MAX_KEYS: Final = 1_000
"""Keys that one group may add for one map. Who sends more, sends values as keys: the catalogue then says only that it is not
complete, with an empty key."""

INCOMPLETE: Final = ""
"""The key that stands for those which are not listed. An attribute whose key really is empty has the same effect."""

_ARRIVALS: Final = schema.arrow_schema("trace_arrivals")
_KEYS: Final = schema.arrow_schema("attribute_keys")


def derived_rows(batches: Mapping[str, pa.RecordBatch]) -> dict[str, pa.RecordBatch]:
    """The rows of `schema.DERIVED_TABLES` that go with these batches; empty where no spans are among them."""
    spans = batches.get("spans")
    if spans is None or not spans.num_rows:
        return {}
    received = pc.min_max(spans.column("received_unix_nano"))
    first, last = received["min"].as_py(), received["max"].as_py()
    return {
        "trace_arrivals": _arrivals(spans.column("trace_id"), first, last),
        "attribute_keys": key_rows((stored_in, _keys(spans.column(stored_in)), first) for stored_in in MAPS),
    }


def attribute_key_id(stored_in: str, key: str) -> int:
    """The id of a key's row: the same in every process and every release."""
    return int.from_bytes(blake2b(f"{stored_in}\0{key}".encode(), digest_size=8).digest())


def key_rows(found: Iterable[tuple[str, list[str], int]]) -> pa.RecordBatch:
    """Rows of `attribute_keys`: of each map its column, its keys, and when they were first received."""
    rows = [
        (attribute_key_id(stored_in, key), key, stored_in, first)
        for stored_in, keys, first in found
        for key in (keys if len(keys) <= MAX_KEYS else [INCOMPLETE])
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(_KEYS)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _KEYS, strict=True)], schema=_KEYS
    )


def _arrivals(trace_ids: pa.Array, first: int, last: int) -> pa.RecordBatch:
    """One row a trace, all with the range of the whole group: it is short, and equal numbers take no room."""
    low = np.unique(_low_halves(trace_ids))
    columns = [pa.array(low), *(pa.array(np.full(len(low), moment)) for moment in (first, last))]
    return pa.RecordBatch.from_arrays(columns, schema=_ARRIVALS)


def _low_halves(trace_ids: pa.Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    storage = trace_ids.storage if isinstance(trace_ids, pa.ExtensionArray) else trace_ids
    data = storage.buffers()[1]
    halves = np.frombuffer(data, dtype=">u8", count=2 * len(storage), offset=16 * storage.offset)
    return halves[1::2].astype(np.uint64)


def _keys(maps: pa.MapArray) -> list[str]:
    """The distinct keys of a column of maps."""
    if maps.null_count == len(maps):
        return []
    offsets = maps.offsets
    first, last = offsets[0].as_py(), offsets[len(maps)].as_py()
    distinct: list[str] = pc.unique(maps.keys.slice(first, last - first)).to_pylist()
    return distinct

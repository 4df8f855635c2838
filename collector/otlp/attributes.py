"""Lists of serialised attributes → typed columns and two maps, without a Python object per attribute.

The attributes of all owners (spans, events or links) of a request are one array: decoded at once, their keys
dictionary-encoded, so that everything per key happens once per distinct key and everything per attribute in NumPy.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from collector.otlp import values
from collector.otlp.projection import KEY_VALUE, VALUE_MEMBERS, owners
from collector.schema import HOT_ATTRIBUTES, HotAttribute

Notes = Counter[str]
"""What was amended in data that was kept: reason → how often."""

Indices = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Members = np.ndarray[Any, np.dtype[np.int8]]

_EMPTY, STRING, _BOOL, INT, _DOUBLE, _ARRAY, _KVLIST, _BYTES = range(8)
_MEMBERS: Final = tuple(f"{m}_value" for m in VALUE_MEMBERS)
_WANTED: Final = {"VARCHAR": STRING, "BIGINT": INT}

NOT_UTF8: Final = "string is not UTF-8: the bad bytes were replaced"
DUPLICATE_KEY: Final = "attribute key twice in one set: the last value was kept"


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of `owners` spans, events or links, ordered by owner.

    Attributes:
        owners: How many owners there are, with or without attributes.
        owner: Whose each attribute is.
        keys: The distinct keys.
        code: Each attribute's key, as an index into `keys`.
        member: Which member of AnyValue each one has: 0 none, else the field number.
        columns: Per member, the values (null in the rows of the other members).
    """

    owners: int
    owner: Indices
    keys: list[str]
    code: Indices
    member: Members
    columns: list[pa.Array]


def strings(array: pa.Array, notes: Notes) -> pa.Array:
    """A binary array as strings; what is not UTF-8 becomes U+FFFD and a note."""
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        fixed = [None if raw is None else values.text(raw) for raw in array.to_pylist()]
        notes[NOT_UTF8] += sum(t is not None and "�" in t for t in fixed)
        return pa.array(fixed, pa.string())


def read(lists: pa.ListArray, notes: Notes) -> Attributes:
    """Each owner's list of serialised KeyValues. Raises DecodeError when one of them is not a KeyValue."""
    encoded = lists.flatten()
    member, columns, key = _one_member_each(encoded)
    owner = owners(lists)
    dictionary = key.dictionary_encode()
    keys = strings(dictionary.dictionary, notes).to_pylist()
    code = dictionary.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(set(keys)) < len(keys):  # two keys became equal when their bad bytes were replaced
        distinct = list(dict.fromkeys(keys))
        code = np.array([distinct.index(k) for k in keys], dtype=np.int64)[code]
        keys = distinct
    columns[0] = strings(columns[0], notes)
    return _last_of_each_key(Attributes(len(lists), owner, keys, code, member, columns), notes)


def _one_member_each(encoded: pa.BinaryArray) -> tuple[Members, list[pa.Array], pa.Array]:
    """Member, value columns and key of each attribute.

    On the wire an AnyValue may carry several members, of which the last counts; ptars reports them all, in no order. So
    those few are parsed by upb, which knows the order, and written again.
    """
    batch = KEY_VALUE.rows(encoded)
    columns, member, several = _value_columns(batch)
    if several:
        plain = encoded.to_pylist()
        valid = np.array([_present(c) for c in columns]).sum(axis=0)
        for index in np.flatnonzero(valid > 1).tolist():
            plain[index] = KEY_VALUE.parse(plain[index]).SerializeToString()
        batch = KEY_VALUE.rows(pa.array(plain, pa.binary()))
        columns, member, _ = _value_columns(batch)
    return member, columns, batch.column("key")


def _value_columns(batch: pa.RecordBatch) -> tuple[list[pa.Array], Members, bool]:
    """The value columns, which of them each attribute has, and whether any attribute has several."""
    value = batch.column("value")
    columns = [value.field(name) for name in _MEMBERS]
    member = np.zeros(len(batch), dtype=np.int8)
    for number, column in enumerate(columns, 1):
        if column.null_count < len(column):
            member[_present(column)] = number
    values_there = sum(len(column) - column.null_count for column in columns)
    return columns, member, values_there > np.count_nonzero(member)


def _present(column: pa.Array) -> Mask:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)


def _last_of_each_key(attributes: Attributes, notes: Notes) -> Attributes:
    """Without the earlier ones of two attributes with the same key and owner: a map has each key once."""
    pair = attributes.owner * max(1, len(attributes.keys)) + attributes.code
    if not _any_twice(pair, attributes.owners * len(attributes.keys)):
        return attributes
    _, from_the_end = np.unique(pair[::-1], return_index=True)
    kept = np.sort(len(pair) - 1 - from_the_end)
    notes[DUPLICATE_KEY] += len(pair) - len(kept)
    return Attributes(
        attributes.owners,
        attributes.owner[kept],
        attributes.keys,
        attributes.code[kept],
        attributes.member[kept],
        [column.take(pa.array(kept)) for column in attributes.columns],
    )


def _any_twice(numbers: Indices, bound: int) -> bool:
    """Whether a number below `bound` occurs twice. Counting is several times faster than sorting where few are missing."""
    if bound <= 8 * len(numbers):
        return bool((np.bincount(numbers, minlength=1) > 1).any())
    ordered = np.sort(numbers)
    return bool((ordered[1:] == ordered[:-1]).any())


# --- typed columns ----------------------------------------------------------------------------------------------------


def pivot(attributes: Attributes) -> tuple[dict[str, pa.Array], Mask]:
    """A column for each of `HOT_ATTRIBUTES`, and which attributes the maps still have to hold.

    An older name fills the column of an owner whose current name is absent or has a value of another type; of several
    older names the first in the schema's order wins. The maps keep whatever did not come from the current name.
    """
    remaining = np.ones(len(attributes.owner), dtype=np.bool_)
    codes = {key: code for code, key in enumerate(attributes.keys)}
    # Key and type in one number: one comparison finds the attributes of a column.
    kind = attributes.code * 8 + attributes.member
    columns = {hot.column: _pivot_one(hot, attributes, kind, codes, remaining) for hot in HOT_ATTRIBUTES}
    return columns, remaining


def _pivot_one(
    hot: HotAttribute, attributes: Attributes, kind: Any, codes: dict[str, int], remaining: Mask
) -> pa.Array:
    member = _WANTED[hot.type]
    values_of = attributes.columns[member - 1]
    names = [name for name in reversed((hot.key, *hot.older)) if name in codes]
    if not names:
        return pa.nulls(attributes.owners, values_of.type)
    source = np.full(attributes.owners, -1, dtype=np.int64)
    for name in names:
        fitting = np.flatnonzero(kind == codes[name] * 8 + member)
        source[attributes.owner[fitting]] = fitting
        if name == hot.key:
            remaining[fitting] = False
    return values_of.take(pa.array(source, mask=source < 0))


# --- maps -------------------------------------------------------------------------------------------------------------


def maps(attributes: Attributes, remaining: Mask, notes: Notes) -> tuple[pa.MapArray, pa.MapArray]:
    """The columns `attributes` and `attributes_json` of the attributes in `remaining`."""
    is_string = attributes.member == STRING
    texts = np.flatnonzero(remaining & is_string)
    others = np.flatnonzero(remaining & ~is_string)
    return (
        _map(attributes, texts, _taken(attributes.columns[STRING - 1], texts)),
        _map(attributes, others, _json(attributes, others, notes)),
    )


def _taken(column: pa.Array, chosen: Indices) -> pa.Array:
    """The chosen values; no copy where it is all of them."""
    return column if len(chosen) == len(column) else column.take(pa.array(chosen))


def _map(attributes: Attributes, chosen: Indices, items: pa.Array) -> pa.MapArray:
    ends = np.cumsum(np.bincount(attributes.owner[chosen], minlength=attributes.owners))
    keys = pa.array(attributes.keys, pa.string()).take(pa.array(attributes.code[chosen]))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.MapArray.from_arrays(pa.array(offsets), keys, items)


def _json(attributes: Attributes, chosen: Indices, notes: Notes) -> pa.Array:
    """The JSON of the chosen attributes, in their order."""
    member = attributes.member[chosen]
    parts: list[pa.Array] = []
    places: list[Indices] = []
    for kind in np.unique(member).tolist():
        place = np.flatnonzero(member == kind)
        places.append(place)
        parts.append(_json_of(attributes, kind, chosen[place], notes))
    if not parts:
        return pa.array([], pa.string())
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate(places))
    return pa.concat_arrays(parts).take(pa.array(order))


def _json_of(attributes: Attributes, kind: int, chosen: Indices, notes: Notes) -> pa.Array:
    if kind == _EMPTY:
        return pa.array(["null"] * len(chosen), pa.string())
    column = _taken(attributes.columns[kind - 1], chosen)
    if kind in {_BOOL, INT}:
        return column.cast(pa.string())
    plain = column.to_pylist()
    match kind:
        case 4:  # _DOUBLE
            texts = [values.double_json(v) for v in plain]
        case 5:  # _ARRAY
            texts = [values.tolerant_json(v, values.array_json, notes) for v in plain]
        case 6:  # _KVLIST
            texts = [values.tolerant_json(v, values.kvlist_json, notes) for v in plain]
        case _:
            texts = [values.bytes_json(v) for v in plain]
    return pa.array(texts, pa.string())

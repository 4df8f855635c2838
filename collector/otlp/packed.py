"""Unpacks `provenance.call` into the attributes that it stands for, by the column: what `provenance.packing.unpack` does of one text.

Before anything else looks at the attributes, so that who packs and who does not leave the same rows. A text that is none of ours stays
the attribute that it is.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector.otlp.attributes import INT, STRING, Attributes, Indices, Mask
from collector.otlp.projection import lengths
from provenance.names import PACKABLE, PACKED
from provenance.packing import MAX_DIGITS, MAX_PACKED_LENGTH

_NAMES: Final = tuple(PACKABLE)
_IS_NUMBER: Final = np.array([kind is int for kind in PACKABLE.values()])
_NUMBER: Final = f"^[0-9]{{1,{MAX_DIGITS}}}$"


def unpack(attributes: Attributes) -> Attributes:
    """With what was packed in the place of the packed texts, still ordered by owner; an attribute that stands beside goes before."""
    if PACKED not in attributes.keys:
        return attributes
    packed = np.flatnonzero((attributes.code == attributes.keys.index(PACKED)) & (attributes.member == STRING))
    texts = attributes.columns[STRING - 1].take(pa.array(packed))
    shaped = pc.and_(
        pc.less_equal(pc.utf8_length(texts), MAX_PACKED_LENGTH),
        pc.and_(pc.starts_with(texts, "{"), pc.ends_with(texts, "}")),
    )
    packed, texts = packed[_mask(shaped)], texts.filter(shaped)
    items = pc.split_pattern(pc.utf8_slice_codeunits(texts, 1, -1), " ")
    text_of = np.asarray(pc.list_parent_indices(items).to_numpy(), dtype=np.int64)
    name, value = _halves(items.flatten())
    good = _readable(text_of, name, value, len(packed))
    kept_items = good[text_of]
    text_of, name, value = text_of[kept_items], name[kept_items], value.filter(pa.array(kept_items))
    remaining = np.ones(len(attributes.owner), dtype=np.bool_)
    remaining[packed[good]] = False
    return _merged(attributes, remaining, attributes.owner[packed][text_of], name, value)


def _halves(items: pa.Array) -> tuple[Indices, pa.Array]:
    """Each item's name, as an index into `_NAMES` (-1: none of them), and its value."""
    at = pc.find_substring(items, "=")
    halves = pc.split_pattern(items, "=", max_splits=1)
    name = pc.list_element(halves, 0)
    index = pc.fill_null(pc.index_in(name, pa.array(_NAMES)), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    index[np.asarray(at.to_numpy(zero_copy_only=False)) < 0] = -1
    # The last half; of an item without `=` that is its name, which nobody reads.
    return index, halves.flatten().take(pa.array(np.cumsum(lengths(halves)) - 1))


def _readable(text_of: Indices, name: Indices, value: pa.Array, texts: int) -> Mask:
    """Which texts are of known names, each once, with a number where one belongs."""
    wants_number = _IS_NUMBER[name] & (name >= 0)
    wrong = name < 0
    numbers = np.flatnonzero(wants_number)
    wrong[numbers] |= ~_mask(pc.match_substring_regex(value.take(pa.array(numbers)), _NUMBER))
    times = np.bincount(text_of * len(_NAMES) + np.maximum(name, 0), minlength=texts * len(_NAMES))
    good: Mask = np.ones(texts, dtype=np.bool_)
    good[(times.reshape(texts, len(_NAMES)) > 1).any(axis=1)] = False
    good[text_of[wrong]] = False
    return good


def _merged(attributes: Attributes, remaining: Mask, owner: Indices, name: Indices, value: pa.Array) -> Attributes:
    keys = [*attributes.keys, *(each for each in _NAMES if each not in attributes.keys)]
    code = np.array([keys.index(each) for each in _NAMES], dtype=np.int64)[name]
    old = np.flatnonzero(remaining)
    new = np.flatnonzero(~np.isin(owner * len(keys) + code, attributes.owner[old] * len(keys) + attributes.code[old]))
    is_number = _IS_NUMBER[name[new]]
    value = value.take(pa.array(new))
    members = {
        STRING: pc.if_else(pa.array(is_number), pa.scalar(None, value.type), value),
        INT: pc.if_else(pa.array(is_number), value, pa.scalar(None, value.type)).cast(pa.int64()),
    }
    owners = np.concatenate([attributes.owner[old], owner[new]])
    order = np.argsort(owners, kind="stable")

    def column(member: int, known: pa.Array) -> pa.Array:
        added: Any = members.get(member, pa.nulls(len(new), known.type))
        return pa.concat_arrays([known.take(pa.array(old)), added.cast(known.type)]).take(pa.array(order))

    return Attributes(
        attributes.owners,
        owners[order],
        keys,
        np.concatenate([attributes.code[old], code[new]])[order],
        np.concatenate([attributes.member[old], np.where(is_number, INT, STRING).astype(np.int8)])[order],
        [column(member, known) for member, known in enumerate(attributes.columns, 1)],
    )


def _mask(array: pa.Array) -> Mask:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)

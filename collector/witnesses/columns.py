"""Columns of text → columns of a table, as the reader of single lines would make them; rows that it must look at are marked.

Everything here is sure or silent: a value of which a kernel of Arrow cannot say what the readers in `values` and `envoy` would say
of it marks its row as unusual, and that row is read by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector.witnesses.blocks import Mask, Values

Column = Any
"""An Arrow array, whole or in chunks."""


class Rows:
    """What is being made of some lines.

    Attributes:
        count: How many.
        unusual: Those of them that are to be read one by one.
    """

    def __init__(self, columns: Mapping[str, Values], count: int, nothing: Sequence[str]) -> None:
        self.count = count
        self.unusual: Mask = np.zeros(count, np.bool_)
        self._nothing = [text.encode() for text in nothing]
        self._columns = columns
        self._present: dict[str, Mask] = {}

    def present(self, key: str) -> Mask:
        """Which rows have a value under this key."""
        if key not in self._present:
            values = self._columns[key]
            absent = values.are(*self._nothing)
            if not values.are_strings.all():
                absent = np.where(values.are_strings, absent, values.are(b"null"))
            self._present[key] = ~absent
        return self._present[key]

    def keys(self) -> list[str]:
        """In the order of the lines."""
        return list(self._columns)

    def has(self, key: str) -> bool:
        """Whether the lines have this key."""
        return key in self._columns

    def strings(self, key: str) -> pa.Array:
        """Values that are strings, NULL where there is none; others are unusual."""
        values, present = self._columns[key], self.present(key)
        self.unusual |= present & ~values.are_strings
        found = present & values.are_strings
        return _where(found, values.text) if found.any() else pa.nulls(self.count, pa.string())

    def counts(self, key: str, *, most_digits: int = 18, scale: int = 1) -> pa.Array:
        """Whole numbers from 0 on, in digits; others are unusual."""
        values, present = self._columns[key], self.present(key)
        if not present.any():
            return pa.nulls(self.count, pa.int64())
        text = values.text
        sure = _mask(pc.ascii_is_decimal(text)) & _mask(pc.less_equal(pc.binary_length(text), most_digits))
        if not values.are_strings.all():  # JSON's numbers have no leading zeros
            has_leading = _mask(pc.starts_with(text, "0")) & _mask(pc.greater(pc.binary_length(text), 1))
            sure &= values.are_strings | ~has_leading
        self.unusual |= present & ~sure
        numbers = _where(present & sure, text).cast(pa.int64())
        return pc.multiply(numbers, scale) if scale != 1 else numbers

    def times(self, key: str) -> pa.Array:
        """RFC 3339 in UTC, with nine digits at most, in ns; others are unusual, and so are rows without a time."""
        values = self._columns[key]
        text = values.text
        sure = _mask(pc.ends_with(text, "Z")) & _mask(pc.greater_equal(pc.binary_length(text), 20)) & values.are_strings
        try:
            found = _where(sure, text).cast(pa.timestamp("ns", "UTC")).cast(pa.int64())
        except pa.ArrowInvalid:
            sure[:] = False
            found = pa.nulls(self.count, pa.int64())
        sure &= _mask(pc.greater_equal(found, 0))
        self.unusual |= ~sure
        return found

    def epochs(self, key: str, *, is_needed: bool) -> pa.Array:
        """Decimal seconds with nine digits at most, in ns; others are unusual, and so are rows without one where it is needed."""
        text = self._columns[key].text
        wanted = np.ones(self.count, np.bool_) if is_needed else self.present(key)
        sure = wanted & _mask(
            pc.match_substring_regex(text, r"^[0-9]{1,9}(\.[0-9]{1,9})?$|^[0-8][0-9]{9}(\.[0-9]{1,9})?$")
        )
        self.unusual |= wanted & ~sure
        decimals = _where(sure, text).cast(pa.decimal128(28, 9))
        words = (
            np.frombuffer(decimals.buffers()[1], np.int64, 2 * self.count)[::2] if self.count else np.empty(0, np.int64)
        )
        return pa.array(words, mask=~sure)

    def mapped(self, key: str, type_: pa.DataType, convert: Callable[[str], object]) -> pa.Array:
        """What a function says of each value that is a string; it is asked once for each that is different."""
        return mapped(self.strings(key), type_, convert)

    def attributes(self, keys: Mapping[str, Mask], truths: Mapping[str, Mask] | None = None) -> pa.Array:
        """A map of these keys, where they have a value that is not used elsewhere; and of what is true of some rows."""
        items: list[Column] = []
        masks: list[Mask] = []
        for key, wanted in keys.items():
            text, is_sure = self._json_text(key, wanted)
            self.unusual |= wanted & ~is_sure
            items.append(text)
            masks.append(wanted)
        for mask in (truths or {}).values():
            items.append(pa.repeat(pa.scalar("true"), self.count))
            masks.append(mask)
        return _maps([*keys, *(truths or {})], items, masks, self.count)

    def _json_text(self, key: str, wanted: Mask) -> tuple[Column, Mask]:
        """Wanted values as the JSON text that stands for them, and of which of them that is sure. No string here needs an escape."""
        values = self._columns[key]
        literals = wanted & ~values.are_strings
        if not literals.any():
            return _quoted(values.text), values.are_strings
        sure = values.are_strings | _mask(pc.match_substring_regex(values.text, _SURE_LITERAL))
        if not (wanted & values.are_strings).any():
            return values.text, sure
        return pc.if_else(pa.array(literals), values.text, _quoted(values.text)), sure


_SURE_LITERAL: Final = r"^(true|false|0|-?[1-9][0-9]{0,900})$"


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', texts, '"', "")


def mapped(texts: pa.Array, type_: pa.DataType, convert: Callable[[str], object]) -> pa.Array:
    """What a function says of each text, asked once for each that is different."""
    encoded = texts.dictionary_encode()
    answers = pa.array([convert(text) for text in encoded.dictionary.to_pylist()], type_)
    return answers.take(encoded.indices)


def first_of(arrays: Sequence[pa.Array]) -> pa.Array:
    """In each row the first value that is there."""
    return arrays[0] if len(arrays) == 1 else pc.coalesce(*arrays)


def _mask(values: Column) -> Mask:
    """Truth, with NULL as false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), np.bool_)


def _where(wanted: Mask, values: pa.Array) -> pa.Array:
    return values if wanted.all() else pc.if_else(pa.array(wanted), values, pa.scalar(None, values.type))


def _maps(keys: Sequence[str], items: Sequence[Column], masks: Sequence[Mask], count: int) -> pa.Array:
    """Rows of a map, from its keys' columns."""
    if not keys:
        return pa.MapArray.from_arrays(
            np.zeros(count + 1, np.int32), pa.array([], pa.string()), pa.array([], pa.string())
        )
    wanted = np.column_stack(masks)
    rows, columns = np.nonzero(wanted)
    everything = pa.concat_arrays([item if isinstance(item, pa.Array) else item.combine_chunks() for item in items])
    values = everything.take(pa.array(columns * count + rows))
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(wanted.sum(axis=1), dtype=np.int32)])
    return pa.MapArray.from_arrays(pa.array(offsets), pa.array(keys, pa.string()).take(pa.array(columns)), values)


NO_VALUES: Final = ("", "-")

r"""A block of lines, taken apart column by column with NumPy: no object per line or value. Pure.

    Lines(data)                          where lines begin and end, and which of them are ordinary
    Lines.shapes() -> [Shape], ...       flat JSON objects: lines with the same keys in the same order, as columns of text
    Lines.separated(by, count)           lines of so many columns, as columns of text

Programs write logs from a template: between its values a line is the same as the one before. So quotes are found (one
comparison a byte), the text between values is compared with that of a line that a JSON parser has read, and
what lies between is the value. A line that differs in anything (an escape, a nested value, another key) is not ordinary: it is
left to the reader of single lines. What is found here is therefore exactly what a JSON parser would find.
"""

import json
import re
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_QUOTE, _BACKSLASH, _NEWLINE, _BLANK = 34, 92, 10, 32

_MAX_QUOTES: Final = 512
_MAX_TEMPLATES: Final = 12
FEWEST_LINES: Final = 16
"""Fewer lines of one shape are faster read one by one."""

_BEFORE_STRING: Final = re.compile(rb"\s*:\s*")
_BEFORE_KEY: Final = re.compile(rb"\s*,\s*")
_LITERAL: Final = re.compile(rb"(?P<before>\s*:\s*)(?P<value>[^\s,{}\[\]:\"]+)(?P<after>\s*(?:,\s*|\}))")


@dataclass(frozen=True, slots=True)
class Values:
    """One column: the text of its values; of JSON strings without their quotes, of everything else as it is written."""

    text: pa.StringArray
    is_string: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """Lines that have the same keys in the same order.

    Attributes:
        lines: Their numbers within the block.
        columns: By key.
    """

    lines: Numbers
    columns: dict[str, Values]


class Lines:
    """The lines of a block; `starts` and `ends` (before the newline) in bytes of it."""

    def __init__(self, data: bytes, max_line_bytes: int) -> None:
        self.data = data if data.endswith(b"\n") or not data else data + b"\n"
        self.bytes = np.frombuffer(self.data, np.uint8)
        self.ends: Numbers = np.flatnonzero(self.bytes == _NEWLINE)
        self.starts: Numbers = np.concatenate([np.zeros(min(1, len(self.ends)), np.int64), self.ends[:-1] + 1])
        self.ordinary: Mask = self.ends - self.starts <= max_line_bytes
        self._leave_out(np.flatnonzero(self.bytes == _BACKSLASH) if b"\\" in data else _NONE)
        is_control = self.bytes < _BLANK
        self._controls: Numbers = _NONE
        if np.count_nonzero(is_control) > len(self.ends):
            self._controls = np.flatnonzero(is_control & (self.bytes != _NEWLINE))
        self.is_ascii = data.isascii()
        self._leave_out_bad_text(data)

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, number: int) -> bytes:
        """A line, without its newline."""
        return self.data[self.starts[number] : self.ends[number]]

    def beginning_with(self, mark: bytes) -> list[int]:
        """The numbers of lines whose first byte this is."""
        return np.flatnonzero(self.bytes[self.starts] == mark[0]).tolist() if len(self) else []

    def containing(self, text: bytes) -> list[int]:
        """The numbers of lines that have this text."""
        if text not in self.data:
            return []
        return [number for number in range(len(self)) if text in self.text(number)]

    def part(self, first: int, last: int) -> "Lines":
        """Some of the lines, at the same places of the same bytes."""
        found = copy(self)
        found.starts, found.ends, found.ordinary = (
            self.starts[first:last],
            self.ends[first:last],
            self.ordinary[first:last],
        )
        if len(found):
            low, high = np.searchsorted(self._controls, (found.starts[0], found.ends[-1]))
            found._controls = self._controls[low:high]  # noqa: SLF001 its own
        return found

    def without_controls(self) -> Mask:
        """Ordinary lines without control characters."""
        before = self.ordinary.copy()
        before[self._line_of(self._controls)] = False
        return before

    def _leave_out(self, positions: Numbers) -> None:
        self.ordinary[self._line_of(positions)] = False

    def _line_of(self, positions: Numbers) -> Numbers:
        """The numbers of the lines that these bytes are in."""
        if not len(self):
            return _NONE
        inside = positions[(positions >= self.starts[0]) & (positions < self.ends[-1])]
        lines: Numbers = np.searchsorted(self.ends, inside)
        return lines

    def _leave_out_bad_text(self, data: bytes) -> None:
        if self.is_ascii:
            return
        try:
            data.decode()
        except UnicodeDecodeError:
            self._leave_out(np.flatnonzero(self.bytes >= 0x80))

    # --- JSON -------------------------------------------------------------------------------------------------------------

    def shapes(self) -> list[Shape]:
        """The shapes that enough lines have; whose number is in none of them is to be read by itself."""
        quotes = np.flatnonzero(self.bytes == _QUOTE)
        before = np.searchsorted(quotes, self.starts)
        counts = np.searchsorted(quotes, self.ends) - before
        candidates = self.without_controls() & (counts % 2 == 0) & (counts > 0) & (counts <= _MAX_QUOTES)
        found: list[Shape] = []
        for count in np.unique(counts[candidates]).tolist():
            lines = np.flatnonzero(candidates & (counts == count))
            for _ in range(_MAX_TEMPLATES):
                if len(lines) < FEWEST_LINES:
                    break
                places = quotes[before[lines, None] + np.arange(count)]
                fits, columns = self._fitting(lines, places)
                if columns:
                    found.append(Shape(lines[fits], columns))
                fits[0] = True  # the template itself is done with, whatever it was
                lines = lines[~fits]
        return found

    def _fitting(self, lines: Numbers, places: Numbers) -> tuple[Mask, dict[str, Values]]:
        """Which of these lines are like the first, and their columns; none where the first is no flat object."""
        template = _template(self.data[self.starts[lines[0]] : self.ends[lines[0]]], places[0] - self.starts[lines[0]])
        if template is None:
            return np.zeros(len(lines), np.bool_), {}
        begins, stops = self._ends_of_values(lines, places, template)
        fits = self._same_between(lines, begins, stops, template)
        return fits, self._columns(begins[fits], stops[fits], template)

    def _ends_of_values(self, lines: Numbers, places: Numbers, template: "_Template") -> tuple[Numbers, Numbers]:
        """Where each line's values begin and end, a column for each key."""
        edges = np.column_stack([self.starts[lines] - 1, places, self.ends[lines]])
        begins = edges[:, template.begin_edges] + template.begin_shifts
        stops = edges[:, template.stop_edges] - template.stop_shifts
        return begins, stops

    def _same_between(self, lines: Numbers, begins: Numbers, stops: Numbers, template: "_Template") -> Mask:
        """Which lines have the template's text between their values."""
        firsts = np.column_stack([self.starts[lines], stops])
        lasts = np.column_stack([begins, self.ends[lines]])
        lengths = np.array([len(text) for text in template.between])
        same: Mask = (lasts - firsts == lengths).all(axis=1) & (stops >= begins).all(axis=1)
        whole = bool(same.all())
        places = firsts if whole else firsts[same]
        equal = np.ones(len(places), np.bool_)
        for column, text in enumerate(template.between):
            if text:
                equal &= self._windows(len(text))[places[:, column]] == np.void(text)
        same[same] = equal
        return same

    def _windows(self, length: int) -> np.ndarray[Any, np.dtype[np.void]]:
        """So many bytes from every place on, as one value each."""
        return np.ndarray((len(self.data) - length + 1,), f"V{length}", self.data, strides=(1,))

    def _columns(self, begins: Numbers, stops: Numbers, template: "_Template") -> dict[str, Values]:
        arrays = self._between(begins, stops)
        return {
            key: Values(array, is_string)
            for key, array, is_string in zip(template.keys, arrays, template.are_strings, strict=True)
        }

    def _between(self, begins: Numbers, stops: Numbers) -> list[pa.StringArray]:
        """Columns of text from where each line's values begin and end.

        One array of all values, with what lies between two of them as a value too, needs no copy; a column is every nth of it.
        """
        rows, columns = begins.shape
        offsets = np.empty((rows, columns, 2), np.int32)
        offsets[:, :, 0], offsets[:, :, 1] = begins, stops
        flat = np.append(offsets.reshape(-1), offsets[-1, -1, 1] if rows else 0).astype(np.int32)
        everything = pa.StringArray.from_buffers(rows * columns * 2, pa.py_buffer(flat), pa.py_buffer(self.data))
        each = np.arange(rows, dtype=np.int64) * (2 * columns)
        return [everything.take(pa.array(each + 2 * column)) for column in range(columns)]

    # --- columns with something between them ----------------------------------------------------------------------------

    def separated(self, by: int, columns: int) -> tuple[Numbers, list[pa.StringArray]]:
        """Lines with so many columns, and nothing in them that JSON would escape: their numbers, and their columns."""
        places = np.flatnonzero(self.bytes == by)
        before = np.searchsorted(places, self.starts)
        counts = np.searchsorted(places, self.ends) - before
        strange = self._controls[self.bytes[self._controls] != by]
        usable = self.ordinary & (counts == columns - 1)
        usable[self._line_of(strange)] = False
        if b'"' in self.data:
            usable[self._line_of(np.flatnonzero(self.bytes == _QUOTE))] = False
        lines = np.flatnonzero(usable)
        inner = places[before[lines, None] + np.arange(columns - 1)]
        begins = np.column_stack([self.starts[lines], inner + 1])
        stops = np.column_stack([inner, self.ends[lines]])
        return lines, self._between(begins, stops)


_NONE: Final = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Template:
    """How a flat object is written.

    A value lies between two edges: the line's start (counted as a quote before it), its quotes, its end. Strings lie between
    two quotes; other values some bytes behind a quote and some before the next edge.
    """

    keys: list[str]
    are_strings: list[bool]
    begin_edges: Numbers
    begin_shifts: Numbers
    stop_edges: Numbers
    stop_shifts: Numbers
    between: list[bytes]


def _template(line: bytes, quotes: Numbers) -> _Template | None:
    """The template that this line is written from; None where it is no flat JSON object, or has a key twice."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    spans = _value_spans(line, [-1, *quotes.tolist(), len(line)])
    if spans is None or [key for key, *_ in spans] != list(parsed):
        return None
    edges = [(first, shift, last, back) for _, _, first, shift, last, back in spans]
    begin_edges, begin_shifts, stop_edges, stop_shifts = (
        np.array(column, np.int64) for column in zip(*edges, strict=True)
    )
    at = np.array([-1, *quotes.tolist(), len(line)])
    begins, stops = at[begin_edges] + begin_shifts, at[stop_edges] - stop_shifts
    firsts, lasts = [0, *stops.tolist()], [*begins.tolist(), len(line)]
    between = [line[first:last] for first, last in zip(firsts, lasts, strict=True)]
    return _Template(
        [key for key, *_ in spans],
        [is_string for _, is_string, *_ in spans],
        begin_edges,
        begin_shifts,
        stop_edges,
        stop_shifts,
        between,
    )


def _value_spans(line: bytes, edges: list[int]) -> list[tuple[str, bool, int, int, int, int]] | None:
    """Of each value its key, whether it is a string, and its edges with the bytes to skip; None for nested values."""
    spans: list[tuple[str, bool, int, int, int, int]] = []
    edge = 1  # a key's first quote
    while edge + 1 < len(edges) - 1:
        key = line[edges[edge] + 1 : edges[edge + 1]].decode()
        gap = line[edges[edge + 1] + 1 : edges[edge + 2]]
        if edge + 3 < len(edges) and _BEFORE_STRING.fullmatch(gap):
            spans.append((key, True, edge + 2, 1, edge + 3, 0))
            edge += 4
        elif match := _LITERAL.fullmatch(gap.rstrip() if edge + 2 == len(edges) - 1 else gap):
            trailing = len(gap) - match.end() if edge + 2 == len(edges) - 1 else 0
            spans.append((key, False, edge + 1, 1 + len(match["before"]), edge + 2, len(match["after"]) + trailing))
            edge += 2
        else:
            return None
    return spans or None

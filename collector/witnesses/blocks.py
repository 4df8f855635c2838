r"""A block of lines, taken apart column by column with NumPy: no object per line or value. Pure.

    Lines(data)                          where lines begin and end, and which of them are ordinary
    Lines.shapes() -> [Shape], ...       flat JSON objects: lines with the same keys in the same order, as columns of text
    Lines.separated(by, count)           lines of so many columns, as columns of text

Programs write logs from a template: between its values a line is the same as the one before. So quotes are found (one
comparison a byte), the text between values is compared with that of a line that a JSON parser has read, and
what lies between is the value. Lines from several templates with the same keys, a string here and a null there, are
one shape. A line that differs in anything (an escape, a nested value, another key) is not ordinary: it is
left to the reader of single lines. What is found here is therefore exactly what a JSON parser would find.
"""

import json
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Self

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


class Bytes:
    """The bytes of a block, and how to look at many places of them at once."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.array = np.frombuffer(data, np.uint8)

    def are(self, places: Numbers, text: bytes) -> Mask | None:
        """At which of these places this text begins; None: at all of them. Each has so many bytes left behind it."""
        if not text or not len(places):
            return None
        found = self._windows(len(text))[places]
        # What a program writes again and again is the same again and again: one comparison for all of it.
        return None if found.tobytes() == text * len(places) else found == np.void(text)

    def _windows(self, length: int) -> np.ndarray[Any, np.dtype[np.void]]:
        """So many bytes from every place on, as one value each."""
        return np.ndarray((len(self.data) - length + 1,), f"V{length}", self.data, strides=(1,))


class Values:
    """One column: where each of its values begins and stops, of JSON strings without their quotes.

    Attributes:
        are_strings: Which of them are; the others are everything else in JSON, as it is written.
    """

    __slots__ = ("_begins", "_bytes", "_stops", "_text", "are_strings")

    def __init__(self, bytes_: Bytes, begins: Numbers, stops: Numbers, are_strings: Mask) -> None:
        self._bytes = bytes_
        self._begins = begins
        self._stops = stops
        self._text: pa.StringArray | None = None
        self.are_strings = are_strings

    @classmethod
    def of(cls, text: pa.StringArray) -> Self:
        """The column that these texts are; none of them NULL."""
        _, offsets, data = text.buffers()
        places = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
        found = cls(Bytes(data.to_pybytes() if data else b""), places[:-1], places[1:], np.ones(len(text), np.bool_))
        found._text = text
        return found

    @property
    def text(self) -> pa.StringArray:
        """The text of its values: copied when it is asked for, which of many columns it never is."""
        if self._text is None:
            self._text = self._copied()
        return self._text

    def are(self, *texts: bytes) -> Mask:
        """Which values are one of these."""
        lengths = self._stops - self._begins
        found = np.zeros(len(lengths), np.bool_)
        for text in texts:
            as_long = np.flatnonzero(lengths == len(text))
            same = self._bytes.are(self._begins[as_long], text)
            found[as_long if same is None else as_long[same]] = True
        return found

    def _copied(self) -> pa.StringArray:
        """One array of all values, with what lies between two of them as a value too, needs no copy; every second is ours."""
        count = len(self._begins)
        if not count:
            return pa.array([], pa.string())
        offsets = np.empty((count, 2), np.int32)
        offsets[:, 0], offsets[:, 1] = self._begins, self._stops
        everything = pa.StringArray.from_buffers(2 * count - 1, pa.py_buffer(offsets), pa.py_buffer(self._bytes.data))
        return everything.take(pa.array(np.arange(0, 2 * count, 2, dtype=np.int32)))


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
        self.places = Bytes(self.data)
        self.bytes = self.places.array
        controls = np.flatnonzero(self.bytes < _BLANK)
        is_newline = self.bytes[controls] == _NEWLINE
        self.ends: Numbers = controls[is_newline]
        self._controls: Numbers = controls[~is_newline]
        self.starts: Numbers = np.concatenate([np.zeros(min(1, len(self.ends)), np.int64), self.ends[:-1] + 1])
        self.ordinary: Mask = self.ends - self.starts <= max_line_bytes
        self._leave_out(np.flatnonzero(self.bytes == _BACKSLASH) if b"\\" in data else _NONE)
        self.is_ascii = data.isascii()
        self._leave_out_bad_text(data)

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, number: int) -> bytes:
        """A line, without its newline."""
        return self.data[self.starts[number] : self.ends[number]]

    def stripped(self, numbers: Numbers) -> tuple[list[int], list[int]]:
        """Where these lines begin and end without the white space around them, as `bytes.strip` knows it."""
        starts, ends = self.starts[numbers], self.ends[numbers]
        for at in np.flatnonzero(_IS_SPACE[self.bytes[starts]] | _IS_SPACE[self.bytes[ends - 1]]):
            line = self.data[starts[at] : ends[at]]
            starts[at] += len(line) - len(line.lstrip())
            ends[at] = starts[at] + len(line.strip())
        return starts.tolist(), ends.tolist()

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
        found: dict[tuple[str, ...], list[_Fitting]] = {}
        for count in np.unique(counts[candidates]).tolist():
            lines = np.flatnonzero(candidates & (counts == count))
            for _ in range(_MAX_TEMPLATES):
                if len(lines) < FEWEST_LINES:
                    break
                fitting = _Fitting(self, lines, quotes, before[lines], count)
                template = _template(self.text(lines[0]), fitting.edges_of_first())
                left = np.ones(len(lines), np.bool_)
                left[0] = False  # the template itself is done with, whatever it was
                if template is not None:
                    fitting.fit(template)
                    left[np.searchsorted(lines, fitting.lines)] = False
                    found.setdefault(tuple(template.keys), []).append(fitting)
                lines = lines[left]
        return [_together(keys, parts) for keys, parts in found.items()]

    # --- columns with something between them ----------------------------------------------------------------------------

    def separated(self, by: int, columns: int) -> tuple[Numbers, list[Values]]:
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
        inner = [places[before[lines] + number] for number in range(columns - 1)]
        begins, stops = [self.starts[lines], *(place + 1 for place in inner)], [*inner, self.ends[lines]]
        are_strings = np.ones(len(lines), np.bool_)
        return lines, [Values(self.places, begin, stop, are_strings) for begin, stop in zip(begins, stops, strict=True)]


_NONE: Final = np.empty(0, np.int64)
_IS_SPACE: Final = np.array([bytes((code,)).isspace() for code in range(256)])


class _Fitting:
    """Lines that have been found to be like a template, so far, and where their values are.

    Values lie between edges: 0 is one before the line's start, then come its quotes, then its end.

    Attributes:
        block: Whose lines.
        lines: Their numbers.
        begins: Of each value where it begins, in each line.
        stops: Where it ends.
        are_strings: Of each value whether it is one.
    """

    def __init__(self, block: Lines, lines: Numbers, quotes: Numbers, before: Numbers, count: int) -> None:
        self.block = block
        self.lines = lines
        self.begins: list[Numbers] = []
        self.stops: list[Numbers] = []
        self.are_strings: list[bool] = []
        self._quotes = quotes
        self._before = before  # how many quotes of the block come before each line
        self._count = count  # how many each line has

    def edges_of_first(self) -> list[int]:
        """All edges of the first line, from its start."""
        start = self.block.starts[self.lines[0]]
        quotes = self._quotes[self._before[0] : self._before[0] + self._count] - start
        return [-1, *quotes.tolist(), int(self.block.ends[self.lines[0]] - start)]

    def fit(self, template: "_Template") -> None:
        """Keep the lines that have the template's text between their values."""
        self.are_strings = template.are_strings
        for number, is_string in enumerate(template.are_strings):
            (edge, behind), (next_edge, ahead) = template.begins[number], template.stops[number]
            self.begins.append(self._at(edge) + behind)
            self._keep_between(self._before_last(), self.begins[-1], template.between[number])
            self.stops.append(self._at(next_edge) - ahead)
            if not is_string:  # a string ends at the quote after the one that it begins with
                self._keep(self.stops[-1] >= self.begins[-1])
        self._keep_between(self.stops[-1], self.block.ends[self.lines], template.between[-1])

    def _before_last(self) -> Numbers:
        """Where the text before the last value begins."""
        return self.stops[-1] if self.stops else self.block.starts[self.lines]

    def _keep_between(self, first: Numbers, last: Numbers, text: bytes) -> None:
        fits = last - first == len(text)
        self._keep(fits)
        equal = self.block.places.are(first if fits.all() else first[fits], text)
        if equal is not None:
            self._keep(equal)

    def _keep(self, fits: Mask) -> None:
        if not fits.all():
            self.lines, self._before = self.lines[fits], self._before[fits]
            self.begins = [places[fits] for places in self.begins]
            self.stops = [places[fits] for places in self.stops]

    def _at(self, edge: int) -> Numbers:
        """Where this edge is in each line."""
        if edge == 0:
            return self.block.starts[self.lines] - 1
        if edge > self._count:
            return self.block.ends[self.lines]
        found: Numbers = self._quotes[self._before + (edge - 1)]
        return found


def _together(keys: Sequence[str], parts: Sequence[_Fitting]) -> Shape:
    """Lines with the same keys, whose values are strings in one and not in the other, in the order of the lines."""
    lines = np.concatenate([part.lines for part in parts])
    order = np.argsort(lines, kind="stable") if len(parts) > 1 else slice(None)
    lengths = [len(part.lines) for part in parts]
    columns = {}
    for number, key in enumerate(keys):
        begins, stops = (
            np.concatenate([places[number] for places in each])[order]
            for each in ([part.begins for part in parts], [part.stops for part in parts])
        )
        are_strings = np.repeat([part.are_strings[number] for part in parts], lengths)[order]
        columns[key] = Values(parts[0].block.places, begins, stops, are_strings)
    return Shape(lines[order], columns)


@dataclass(frozen=True, slots=True)
class _Template:
    """How a flat object is written.

    A value lies between two edges (see `_Edges`). Strings lie between two quotes; other values some bytes behind a quote and some
    before the next edge.

    Attributes:
        keys: In their order.
        are_strings: Of each value whether it is one.
        begins: Of each value the edge before it, and how far behind that it begins.
        stops: The edge after it, and how far before that it stops.
        between: What is written before the first value, between any two, and behind the last.
    """

    keys: list[str]
    are_strings: list[bool]
    begins: list[tuple[int, int]]
    stops: list[tuple[int, int]]
    between: list[bytes]


def _template(line: bytes, edges: list[int]) -> _Template | None:
    """The template that this line is written from; None where it is no flat JSON object, or has a key twice."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    spans = _value_spans(line, edges)
    if spans is None or [key for key, *_ in spans] != list(parsed):
        return None
    begins = [(edge, shift) for _, _, edge, shift, _, _ in spans]
    stops = [(edge, shift) for _, _, _, _, edge, shift in spans]
    firsts = [0, *(edges[edge] - shift for edge, shift in stops)]
    lasts = [*(edges[edge] + shift for edge, shift in begins), len(line)]
    between = [line[first:last] for first, last in zip(firsts, lasts, strict=True)]
    return _Template([key for key, *_ in spans], [is_string for _, is_string, *_ in spans], begins, stops, between)


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

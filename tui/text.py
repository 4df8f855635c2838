"""Text for a screen: what strangers wrote made harmless, numbers and times made short. Pure functions.

Span data is written by whoever is under investigation. Nothing here interprets markup, and `clean` is the one gate that
every cell goes through: no control character, no bidi override, no invisible character and no pile of combining marks
reaches the terminal. What was there is shown as `�`, because a name that hides something is itself worth seeing.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from rich.cells import cell_len, set_cell_size

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
ELLIPSIS: Final = "…"
SPARKS: Final = "▁▂▃▄▅▆▇"
"""Without the full block: a gap remains between the lines of a table."""

_MARKS_KEPT: Final = 2
"""Combining marks kept on one base: Vietnamese and Hebrew need two; more is decoration or an attack on the row above."""

_SPACES: Final = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]")


def clean(text: str) -> str:
    """The text without anything that a terminal or an eye could be misled by; line breaks and tabs become spaces."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_harmless(_SPACES.sub(" ", text)))


def _harmless(text: str) -> Iterator[str]:
    marks = _MARKS_KEPT  # at the start of a cell there is no base to combine with
    for char in text:
        category = unicodedata.category(char)
        if category in {"Mn", "Me"}:
            marks += 1
            # Variation selectors change a character's width in some terminals only.
            if marks <= _MARKS_KEPT and not 0xFE00 <= ord(char) <= 0xFE0F:
                yield char
            continue
        marks = 0
        if category == "Zs":
            yield " "
        elif category[0] == "C":  # control, format (bidi, zero-width), surrogate, private, unassigned
            yield REPLACEMENT
        else:
            yield char


def fit(text: str, width: int, *, right: bool = False, keep_end: bool = False) -> str:
    """Cleaned text in exactly `width` cells: padded, or cut with an ellipsis (at the start with `keep_end`)."""
    if width <= 0:
        return ""
    room = 4 * width + 4  # enough characters for any cut, so that a megabyte in one attribute costs nothing
    text = clean(text[-room:] if keep_end else text[:room])
    length = cell_len(text)
    if length > width:
        return (
            set_cell_size(ELLIPSIS + _tail(text, width - 1), width) if keep_end else _head(text, width - 1) + ELLIPSIS
        )
    padding = " " * (width - length)
    return padding + text if right else text + padding


def _head(text: str, width: int) -> str:
    return set_cell_size(text, width)


def _tail(text: str, width: int) -> str:
    while cell_len(text) > width:
        text = text[1:]
    return text


def wrap(text: str, width: int, *, limit: int = 4_000) -> list[str]:
    """Cleaned lines of at most `width` cells, broken at spaces where there are any.

    Beyond `limit` characters the rest is counted, not shown: an export holds all of it.
    """
    more = len(text) - limit
    lines = [line for part in text[:limit].splitlines() or [""] for line in _wrap_line(clean(part), max(width, 1))]
    if more > 0:
        lines.append(f"{ELLIPSIS} {more:,} more characters")
    return lines


def _wrap_line(text: str, width: int) -> Iterator[str]:
    while cell_len(text) > width:
        head = set_cell_size(text, width).rstrip(" ")
        cut = head.rfind(" ") if text[len(head) : len(head) + 1] not in {"", " "} else len(head)
        cut = cut if cut > 0 else max(len(head), 1)
        yield text[:cut].rstrip()
        text = text[cut:].lstrip(" ")
    yield text


def duration(nanoseconds: float | None) -> str:
    """A duration in three significant digits: `850ns`, `4.10ms`, `1.25s`, `3m07s`; `·` when not known."""
    if nanoseconds is None:
        return "·"
    sign, ns = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if ns < 1_000:
        return f"{sign}{ns:.0f}ns"
    for unit, scale in (("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        value = ns / scale
        if value < 999.5 and (unit != "s" or value < 60):
            return f"{sign}{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    minutes, seconds = divmod(round(ns / 1e9), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours}h{minutes:02d}m" if hours else f"{sign}{minutes}m{seconds:02d}s"


def ago(then_unix_nano: int | None, now_unix_nano: int) -> str:
    """How long ago, coarse enough to read at a glance; a sender's clock may be ahead of ours."""
    return (
        "·"
        if then_unix_nano is None
        else age(now_unix_nano - then_unix_nano) + (" ago" if then_unix_nano <= now_unix_nano else " ahead")
    )


def age(nanoseconds: int) -> str:
    """A span of time in one unit: `3s`, `12m`, `5h`, `9d`."""
    seconds = abs(nanoseconds) // 1_000_000_000
    for unit, size, below in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if seconds < below:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86_400}d"


def utc(unix_nano: int | None, *, millis: bool = True) -> str:
    """`2026-11-23 03:12:07.123Z`; `·` when not known, the bare number when no calendar has it."""
    if unix_nano is None:
        return "·"
    try:
        moment = datetime.fromtimestamp(unix_nano // 1_000_000_000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return f"{unix_nano}ns"
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{unix_nano % 1_000_000_000 // 1_000_000:03d}Z" if millis else "Z")


def clock_time(unix_nano: int) -> str:
    """The time of day alone: `03:12:07Z`."""
    return utc(unix_nano, millis=False)[11:]


def number(value: float | None) -> str:
    """A count with thousands separated; `·` when not known."""
    return "·" if value is None else f"{value:,.0f}"


def rate(per_second: float | None) -> str:
    """Calls a second with just the digits that matter."""
    if per_second is None:
        return "·"
    return (
        f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2g}"
    )


def percent(ratio: float | None) -> str:
    """A ratio as percent; a rate that is not zero never reads as zero."""
    if ratio is None:
        return "·"
    return (
        "<0.1%"
        if 0 < ratio < 0.001
        else "0"
        if ratio == 0
        else f"{100 * ratio:.1f}%"
        if ratio < 0.1
        else f"{100 * ratio:.0f}%"
    )


def plural(count: int, noun: str) -> str:
    """`1 span`, `12,345 spans`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Block characters from zero to the series' maximum, `width` of them at most; a gap where nothing was measured."""
    points = _resample(values, width)
    top = max((p for p in points if p is not None), default=0.0)
    last = len(SPARKS) - 1
    return "".join(
        " " if p is None else SPARKS[0] if top <= 0 else SPARKS[min(last, round(max(p, 0.0) / top * last))]
        for p in points
    )


def _resample(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width or width <= 0:
        return list(values) if width > 0 else []
    edges = [i * len(values) // width for i in range(width + 1)]
    groups = ([v for v in values[a:b] if v is not None] for a, b in pairwise(edges))
    return [max(group) if group else None for group in groups]

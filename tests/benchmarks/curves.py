"""A curve of samples: its slope, and how it looks, in a terminal and as SVG. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

BLOCKS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 720
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 28, 28


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a picture: a value for each second that was sampled."""

    name: str
    colour: str
    values: Sequence[float]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line with the least squares, in units of a value by units of a time; 0 where there is none."""
    if len(times) < 2:
        return 0.0
    middle_time, middle_value = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time - middle_time) ** 2 for time in times)
    if spread == 0:
        return 0.0
    return sum((t - middle_time) * (v - middle_value) for t, v in zip(times, values, strict=True)) / spread


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The largest value of each of `width` equal stretches as a block between the least and the largest of all."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [number * len(values) // width for number in range(width + 1)]
    highest = [max(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(highest), max(highest)
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    return "".join(BLOCKS[round((value - low) / step)] for value in highest)


def svg(title: str, times: Sequence[float], lines: Sequence[Line]) -> str:
    """Lines over seconds, in MB from zero up; with the last time and the largest value at the axes."""
    last = max(times, default=0.0) or 1.0
    top = max((value for line in lines for value in line.values), default=0.0) or 1.0

    def x(time: float) -> float:
        return LEFT + time / last * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 16, title),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>',
        _text(LEFT - 6, y(top) + 4, f"{top:.0f} MB", anchor="end"),
        _text(LEFT - 6, y(0) + 4, "0", anchor="end"),
        _text(WIDTH - RIGHT, HEIGHT - 8, f"{last:.0f} s", anchor="end"),
    ]
    for number, line in enumerate(lines):
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(times, line.values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>')
        parts.append(_text(LEFT + 90 * number, HEIGHT - 8, line.name, colour=line.colour))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escaped}</text>'

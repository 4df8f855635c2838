"""Sizes and ages as people write them: pure, from text to bytes or ns, and back to the same text.

parse_size("20GiB") -> 21474836480      show_size(21474836480) -> "20GiB"
parse_age("7d") -> 604800000000000      show_age(604800000000000) -> "7d"
"""

import re
from typing import Final

NS_PER_S: Final = 10**9

_SIZE_UNITS: Final[dict[str, int]] = {
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    "B": 1,
}
"""How people mean them; `20G` is not among them, since it means two things."""

_AGE_UNITS: Final = {"w": 7 * 86_400, "d": 86_400, "h": 3600, "m": 60, "s": 1}

_SIZE: Final = re.compile(r"(\d{1,19}) ?([a-z]*)", re.ASCII | re.IGNORECASE)
_AGE: Final = re.compile(r"(\d{1,10})([smhdw])", re.ASCII)
_BY_LOWER: Final = {unit.lower(): size for unit, size in _SIZE_UNITS.items()}

MAX_AGE_NS: Final = 36_525 * 86_400 * NS_PER_S
"""A hundred years: ns since the Unix epoch minus this still has 64 bits."""


def parse_size(text: str) -> int:
    """Bytes; a number without a unit is one of bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _BY_LOWER.get((match[2] or "B").lower()) if match else None
    if match is None or unit is None:
        raise ValueError(text)
    return int(match[1]) * unit


def show_size(size_bytes: int) -> str:
    """`20GiB` or `500MB`, whichever is shorter and exact."""
    number, unit = min((size_bytes // size, unit) for unit, size in _SIZE_UNITS.items() if size_bytes % size == 0)
    return f"{number}{unit}"


def parse_age(text: str) -> int:
    """ns; raises ValueError, also for none and for more than a hundred years."""
    match = _AGE.fullmatch(text.strip())
    if match is None or not 0 < (age_ns := int(match[1]) * _AGE_UNITS[match[2]] * NS_PER_S) <= MAX_AGE_NS:
        raise ValueError(text)
    return age_ns


def show_age(age_ns: int) -> str:
    """`7d`, in the largest unit that is exact, but not in weeks."""
    seconds = age_ns // NS_PER_S
    unit, size = next((u, s) for u, s in _AGE_UNITS.items() if u != "w" and seconds % s == 0)
    return f"{seconds // size}{unit}"

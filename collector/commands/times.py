"""Times as they are typed: RFC 3339, or how long ago. It imports nothing heavy, for commands that must paint or refuse at once."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from collector.errors import ConfigError

NS_PER_S: Final = 1_000_000_000
MARGIN_NS: Final = 7 * 86_400 * NS_PER_S
"""Detectors look around a window, by a day at most; what they compute must stay 64 bits wide too."""

LIMIT_NS: Final = 2**63 - 1 - MARGIN_NS

_UNIX_NS: Final = re.compile(r"\d{16,19}", re.ASCII)
"""A Unix time in ns since 1970-04-26; fewer digits are more likely seconds or milliseconds, and refused."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_RELATIVE: Final = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
# datetime keeps microseconds; evidence is in nanoseconds.
_FRACTION: Final = re.compile(r"[.,](\d{1,9})\d*", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment, or a distance before now.

    Attributes:
        nanoseconds: Since the Unix epoch; of a relative one, before now.
        is_relative: Whether it moves with the clock.
    """

    nanoseconds: int
    is_relative: bool

    def at(self, now_unix_nano: int) -> int:
        """In ns since the Unix epoch, seen from now; what is longer ago than the epoch is the epoch."""
        return max(0, now_unix_nano - self.nanoseconds) if self.is_relative else self.nanoseconds


def rfc3339(unix_nano: int) -> str:
    """The moment as RFC 3339 in UTC, to the nanosecond."""
    seconds, rest = divmod(unix_nano, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def parse_moment(text: str) -> Moment:
    """The moment that a text names; without an offset it is UTC. Raises ConfigError, also where 64 bits of nanoseconds end."""
    text = text.strip()
    if match := _RELATIVE.fullmatch(text):
        return Moment(int(match[1]) * _UNITS[match[2]] * NS_PER_S, is_relative=True)
    fraction = _FRACTION.search(text)
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    except ValueError as e:
        raise ConfigError(f"{text!r} is no time: write 2026-03-01T03:12:00Z, or how long ago: 90s, 15m, 2h, 1d") from e
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    nanoseconds = seconds * NS_PER_S + (int(fraction[1].ljust(9, "0")) if fraction else 0)
    if not 0 <= nanoseconds <= LIMIT_NS:  # a window over both sides of 1970 could be wider than 64 bits
        raise ConfigError(f"{text!r} is beyond what nanoseconds can say: expected a time from 1970-01-01 to 2262-04-04")
    return Moment(nanoseconds, is_relative=False)


def parse_time(text: str, now_unix_nano: int) -> int:
    """The same in ns since the Unix epoch, seen from now."""
    return parse_moment(text).at(now_unix_nano)


def parse_range(text: str, now_unix_nano: int) -> tuple[int, int]:
    """START..END in ns since the Unix epoch; each as `parse_moment` reads it, or Unix ns. Raises ConfigError, also where it is empty."""
    start, separator, end = text.partition("..")
    if not separator or not start.strip() or not end.strip():
        raise ConfigError(
            f"{text!r} is no window: write START..END, as in 2026-03-01T03:10:00Z..2026-03-01T03:20:00Z or 15m..0s"
        )
    since, until = (_parse_unix_or_moment(part.strip(), now_unix_nano) for part in (start, end))
    if since >= until:
        raise ConfigError(f"{text!r} is an empty window: its end, {until}, must be after its start, {since} (Unix ns)")
    return since, until


def _parse_unix_or_moment(text: str, now_unix_nano: int) -> int:
    if _UNIX_NS.fullmatch(text):
        if int(text) > LIMIT_NS:
            raise ConfigError(f"{text!r} is beyond what nanoseconds can say: expected at most {LIMIT_NS}")
        return int(text)
    return parse_time(text, now_unix_nano)

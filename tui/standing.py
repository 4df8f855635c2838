"""How things stand, for the line that is always on the screen: one immutable value and the line it becomes."""

from dataclasses import dataclass, field
from typing import Final

from rich.cells import cell_len

from tui.line import Line, Piece, Tone
from tui.snapshots import Health
from tui.text import age, clean, clock_time, fit, plural

SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass(frozen=True, slots=True)
class Standing:
    """The source, what it holds, what is being asked, and what went wrong."""

    source: str
    is_live: bool
    now_unix_nano: int
    health: Health | None = None
    finding_count: int | None = None
    worst: str | None = None
    notes: tuple[str, ...] = ()
    """What the detectors could not see."""
    busy: frozenset[str] = frozenset()
    tick: int = 0
    lost_since_unix_nano: int | None = None
    problems: tuple[tuple[str, str], ...] = field(default=())
    """(what was asked, why it was not answered), until the same is answered again."""


def without_problem(problems: tuple[tuple[str, str], ...], what: str) -> tuple[tuple[str, str], ...]:
    """The problems that remain when this question has been answered."""
    return tuple(p for p in problems if p[0] != what)


def render(standing: Standing, width: int) -> Line:
    """The status line: what matters most stands first, what does not fit is left out from the right."""
    parts = [_contact(standing), *_trouble(standing), *_amounts(standing), *_gaps(standing)]
    line: list[Piece] = [Piece(" ")]
    room = width - 2
    for i, (text, tone) in enumerate(parts):
        separator = "" if i == 0 else " · "
        if room - len(separator) < min(cell_len(text), 12):
            break
        room -= len(separator)
        shown = fit(text, min(cell_len(clean(text)), room))
        line += [Piece(separator, "dim"), Piece(shown, tone)]
        room -= cell_len(shown)
    return tuple(line)


def _contact(standing: Standing) -> tuple[str, Tone]:
    source = standing.source if len(standing.source) <= 32 else fit(standing.source, 32, keep_end=True)
    if standing.lost_since_unix_nano is not None:
        return f"✗ {source}", "critical"
    if standing.busy:
        return f"{SPINNER[standing.tick % len(SPINNER)]} {source}", "accent"
    return f"{'●' if standing.is_live else '■'} {source}", "good" if standing.is_live else "plain"


def _trouble(standing: Standing) -> list[tuple[str, Tone]]:
    since = standing.lost_since_unix_nano
    if since is not None:
        return [(f"lost contact since {clock_time(since)}, retrying", "critical")]
    return [(f"✗ {what}: {reason}", "critical") for what, reason in standing.problems]


def _amounts(standing: Standing) -> list[tuple[str, Tone]]:
    health = standing.health
    if health is None:
        return [("reading", "dim")]
    parts: list[tuple[str, Tone]] = [(plural(health.span_count, "span"), "plain")]
    if health.newest_unix_nano is not None:
        parts.append((f"newest {age(standing.now_unix_nano - health.newest_unix_nano)} old", "plain"))
    if standing.finding_count is not None:
        worst: Tone = "critical" if standing.worst == "critical" else "plain"
        parts.append((plural(standing.finding_count, "finding"), worst))
    return parts


def _gaps(standing: Standing) -> list[tuple[str, Tone]]:
    gaps = (*(standing.health.incomplete if standing.health is not None else ()), *standing.notes)
    if not gaps:
        return []
    more = f" (+{len(gaps) - 1})" if len(gaps) > 1 else ""
    return [(f"! {gaps[0]}{more}", "medium")]

"""A line of the screen as data: pieces of text, each with a tone. Views make lines; one widget paints them.

A tone names a meaning, not a colour; the stylesheet gives it one, and no tone is the only sign of what it means.
"""

from typing import Final, Literal, NamedTuple, Protocol, get_args

Tone = Literal[
    "plain",
    "dim",
    "strong",
    "accent",
    "good",
    "critical",
    "high",
    "medium",
    "low",
    "path",
    "new",
    "header",
    "tab",
]

TONES: Final[tuple[Tone, ...]] = get_args(Tone)


class Piece(NamedTuple):
    """Text in one tone."""

    text: str
    tone: Tone = "plain"


Line = tuple[Piece, ...]


def plain(text: str, tone: Tone = "plain") -> Line:
    """A line of one piece."""
    return (Piece(text, tone),)


def text_of(line: Line) -> str:
    """The line's characters without its tones."""
    return "".join(piece.text for piece in line)


class Rows(Protocol):
    """What a list shows: lines made on demand, so that a row costs nothing until it is on the screen.

    `key` is a row's identity across refreshes, None for a row that the cursor passes over (a heading, wrapped text).
    """

    def __len__(self) -> int: ...

    def key(self, index: int) -> str | None:
        """The identity of a row."""
        ...

    def find(self, key: str) -> int | None:
        """Where the row with this identity is now."""
        ...

    def header(self, width: int) -> Line | None:
        """The line that stays above the rows."""
        ...

    def line(self, index: int, width: int) -> Line:
        """One row in at most `width` cells."""
        ...

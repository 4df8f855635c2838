"""Columns of a table in cells: which fit, how wide, and a row painted into them. Pure functions.

Where the width is short, columns leave in the order of their `rank` (highest first) and the growing ones share the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.cells import cell_len

from tui.line import Line, Piece, Tone
from tui.text import fit, sparkline

GAP = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: least width, share of what is left over (`grow`), and when it leaves (`rank` 0: never)."""

    title: str
    width: int
    grow: int = 0
    rank: int = 0
    right: bool = False
    most: int = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of one cell and what it means."""

    text: str
    tone: Tone = "plain"
    series: tuple[float | None, ...] | None = None
    """Drawn as a sparkline instead of the text, as wide as the column."""

    def fitted(self, width: int, *, right: bool) -> str:
        """In exactly so many cells."""
        return fit(self.text if self.series is None else sparkline(self.series, width), width, right=right)


def arrange(columns: Sequence[Column], width: int) -> list[tuple[int, int]]:
    """(index, cells) of the columns that fit into `width`, left to right."""
    kept = list(range(len(columns)))
    while len(kept) > 1 and _need(columns, kept) > width:
        leaving = max(kept, key=lambda i: (columns[i].rank, i))
        if columns[leaving].rank == 0:
            break
        kept.remove(leaving)
    widths = {i: columns[i].width for i in kept}
    spare = max(width - _need(columns, kept), 0)
    growing = sorted((i for i in kept if columns[i].grow), key=lambda i: columns[i].most - columns[i].width)
    shares = sum(columns[i].grow for i in growing)
    for i in growing:  # the most limited first: what one column may not take, the others share
        extra = min(spare * columns[i].grow // shares, max(columns[i].most - columns[i].width, 0))
        widths[i] += extra
        spare, shares = spare - extra, shares - columns[i].grow
    return [(i, widths[i]) for i in kept]


def _need(columns: Sequence[Column], kept: Sequence[int]) -> int:
    return sum(columns[i].width for i in kept) + GAP * (len(kept) - 1)


def heading(columns: Sequence[Column], width: int) -> Line:
    """The line of titles."""
    return _join(
        [Piece(fit(columns[i].title, w, right=columns[i].right), "header") for i, w in arrange(columns, width)]
    )


def row(columns: Sequence[Column], cells: Sequence[Cell], width: int) -> Line:
    """One row; `cells` answers `columns` one to one."""
    return _join([Piece(cells[i].fitted(w, right=columns[i].right), cells[i].tone) for i, w in arrange(columns, width)])


def _join(pieces: Sequence[Piece]) -> Line:
    line: list[Piece] = []
    for piece in pieces:
        line += [Piece(" " * GAP), piece] if line else [piece]
    return tuple(line)


@dataclass(frozen=True)
class TableRows(Generic[T]):
    """Rows of a table over a snapshot: nothing is formatted before it is painted."""

    columns: tuple[Column, ...]
    items: Sequence[T]
    keys: Sequence[str]
    places: Mapping[str, int]
    cells: Callable[[T], Sequence[Cell]]

    def __len__(self) -> int:
        return len(self.items)

    def key(self, index: int) -> str:
        """The row's identity."""
        return self.keys[index]

    def find(self, key: str) -> int | None:
        """Where the row is now."""
        return self.places.get(key)

    def header(self, width: int) -> Line:
        """The titles."""
        return heading(self.columns, width)

    def line(self, index: int, width: int) -> Line:
        """One row."""
        return row(self.columns, self.cells(self.items[index]), width)


def table(
    columns: tuple[Column, ...], items: Sequence[T], key: Callable[[T], str], cells: Callable[[T], Sequence[Cell]]
) -> TableRows[T]:
    """A table's rows; `key` must tell rows apart."""
    keys = [key(item) for item in items]
    return TableRows(columns, items, keys, {k: i for i, k in enumerate(keys)}, cells)


def width_of(line: Line) -> int:
    """The cells that a line takes."""
    return sum(cell_len(piece.text) for piece in line)

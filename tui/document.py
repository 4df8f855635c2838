"""Running text as rows: labelled, wrapped paragraphs, some of which can be chosen. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from tui.line import Line, Piece, Tone
from tui.text import fit, wrap

LABEL_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Block:
    """One paragraph: its label, its text, and the key under which it can be chosen."""

    label: str
    text: str
    tone: Tone = "plain"
    key: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """Wrapped lines; `keys` answers `lines` one to one."""

    lines: tuple[Line, ...]
    keys: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def key(self, index: int) -> str | None:
        """The identity of a line that can be chosen."""
        return self.keys[index]

    def find(self, key: str) -> int | None:
        """Where that line is."""
        return self.keys.index(key) if key in self.keys else None

    def header(self, width: int) -> None:
        """A document has no titles."""

    def line(self, index: int, width: int) -> Line:  # noqa: ARG002 - a row of Rows
        """One line, as it was wrapped."""
        return self.lines[index]


def compose(blocks: Sequence[Block], width: int) -> DocumentRows:
    """The blocks wrapped to `width` cells, labels in a column of their own (above the text where it is narrow)."""
    lines: list[Line] = []
    keys: list[str | None] = []
    for block in blocks:
        for line in _lines(block, width):
            lines.append(line)
            keys.append(block.key)
            block = Block("", "", key=None)  # only a paragraph's first line can be chosen  # noqa: PLW2901
    return DocumentRows(tuple(lines), tuple(keys))


def _lines(block: Block, width: int) -> Iterable[Line]:
    if not block.label:
        return [(Piece(text, block.tone),) for text in wrap(block.text, width)]
    if len(block.label) < LABEL_WIDTH and width >= 2 * LABEL_WIDTH:
        texts = wrap(block.text, width - LABEL_WIDTH)
        return [
            (Piece(fit(block.label if i == 0 else "", LABEL_WIDTH), "dim"), Piece(text, block.tone))
            for i, text in enumerate(texts)
        ]
    return _attribute(block, width)


def _attribute(block: Block, width: int) -> Iterable[Line]:
    """A long label stands before its text where both fit on one line, else above it."""
    label = fit(block.label, width).rstrip()
    room = width - cell_len(label) - 1
    texts = wrap(block.text, max(room, 1))
    if room > 0 and len(texts) == 1:
        return [(Piece(label, "dim"), Piece(" "), Piece(texts[0], block.tone))]
    return [(Piece(label, "dim"),), *((Piece("  "), Piece(t, block.tone)) for t in wrap(block.text, width - 2))]

"""From lines to the terminal: the one place where text becomes segments, cleaned and never parsed as markup."""

from functools import lru_cache
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from tui.line import TONES, Line
from tui.text import ELLIPSIS, clean

TONE_CLASSES = {f"tone--{tone}" for tone in TONES}


def paint(widget: Widget, line: Line, width: int, base: Style) -> Strip:
    """The line in exactly `width` cells on `base`; what does not fit is cut with an ellipsis.

    The stylesheet gives tones their colours.
    """
    segments = [
        Segment(clean(text), base + _ink(widget.get_component_rich_style(f"tone--{tone}")))
        for text, tone in line
        if text
    ]
    strip = Strip(segments)
    if strip.cell_length > width > 0:
        strip = Strip([*strip.crop(0, width - 1), Segment(ELLIPSIS, base)])
    return strip.adjust_cell_length(width, base)


@lru_cache(maxsize=256)
def _ink(style: Style) -> Style:
    """A tone without its background, so that the cursor's shows through; a tone's opacity is in its colour already."""
    return Style(color=style.color, bold=style.bold, dim=style.dim, italic=style.italic, underline=style.underline)


class OneLine(Widget):
    """A widget one line high; subclasses say what is on it."""

    COMPONENT_CLASSES: ClassVar[set[str]] = TONE_CLASSES

    def line(self, width: int) -> Line:
        """What it says in `width` cells."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        """The only line."""
        width = self.content_region.width
        return paint(self, self.line(width) if y == 0 else (), width, self.rich_style)


class Label(OneLine):
    """One line that is set from outside."""

    said: reactive[Line] = reactive(())

    def line(self, width: int) -> Line:  # noqa: ARG002 - it is cut when it is painted
        """What was set."""
        return self.said

"""The one list of the workbench: a virtual list that paints only the lines on the screen, whatever their number.

Tables, the waterfall, details and SQL are all `Rows` in it. A `DataTable` needs 23 s to show 100,000 rows; this asks
for as many lines as the screen is high. The cursor belongs to a row's key, so it stays on its row when rows come and go.
"""

from collections.abc import Sequence
from itertools import chain
from typing import ClassVar, Final

from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.document import Block, compose
from tui.line import Line, Piece, Rows
from tui.widgets.painting import TONE_CLASSES, paint

GUTTER: Final = 2
"""Cells on the left that mark the cursor by shape, not by colour alone."""


class NoRows:
    """An empty list, or one that only says something."""

    def __init__(self, lines: tuple[Line, ...] = ()) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def key(self, index: int) -> None:
        """No row can be chosen."""

    def find(self, key: str) -> None:
        """Nothing is here."""

    def header(self, width: int) -> None:
        """No titles."""

    def line(self, index: int, width: int) -> Line:  # noqa: ARG002 - a row of Rows
        """One line of what it says."""
        return self._lines[index]


class Listing(ScrollView, can_focus=True, inherit_bindings=False):
    """A virtual list of `Rows` with a cursor."""

    KEYS_TITLE: ClassVar[str] = "Lists"
    COMPONENT_CLASSES: ClassVar[set[str]] = TONE_CLASSES | {"listing--cursor", "listing--cursor-blurred"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "next row", show=False),
        Binding("up,k", "move(-1)", "previous row", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "page down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "page up", show=False),
        Binding("home,g", "edge(False)", "first row", show=False, key_display="g"),
        Binding("end,G", "edge(True)", "last row", show=False, key_display="G"),
        Binding("enter", "choose", "open", key_display="enter"),
    ]

    class Highlighted(Message):
        """The cursor is on another row; `key` None: on none."""

        def __init__(self, listing: "Listing", key: str | None) -> None:
            super().__init__()
            self.listing = listing
            self.key = key

        @property
        def control(self) -> "Listing":
            """The list that sent it."""
            return self.listing

    class Chosen(Message):
        """Enter, or a click on the row under the cursor."""

        def __init__(self, listing: "Listing", key: str) -> None:
            super().__init__()
            self.listing = listing
            self.key = key

        @property
        def control(self) -> "Listing":
            """The list that sent it."""
            return self.listing

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's own name
        super().__init__(id=id, classes=classes)
        self._rows: Rows = NoRows()
        self._cursor = 0

    # --- what others ask of it ----------------------------------------------------------------------------------

    @property
    def rows(self) -> Rows:
        """What it shows."""
        return self._rows

    @property
    def cursor(self) -> int:
        """The index of the row under the cursor."""
        return self._cursor

    @property
    def cursor_key(self) -> str | None:
        """The identity of the row under the cursor."""
        return self._rows.key(self._cursor) if self._cursor < len(self._rows) else None

    def show(self, rows: Rows, *, top: bool = False) -> None:
        """Show other rows: cursor and scroll position stay with the row's key, or go to the top with `top`."""
        before = None if top else self.cursor_key
        place_on_screen = self._cursor - self.scroll_offset.y
        was_at_top = self.scroll_offset.y == 0
        self._rows = rows
        found = rows.find(before) if before is not None else None
        start = 0 if top else min(self._cursor, max(len(rows) - 1, 0))
        self._cursor = found if found is not None else self._nearest(start, 1)
        self._measure()
        if top or (was_at_top and self._cursor < self._page_rows):
            self._scroll(0)
        elif found is not None:
            self._scroll(found - place_on_screen)
        self._reveal()
        self.refresh()
        if self.cursor_key != before:
            self.post_message(self.Highlighted(self, self.cursor_key))

    def select(self, key: str) -> bool:
        """Put the cursor on the row with this key, if it is there."""
        index = self._rows.find(key)
        if index is None:
            return False
        self._go(index)
        return True

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """One row down or up; one line of scrolling where no row is left to choose."""
        if any(self._rows.key(i) is not None for i in self._ahead(step)):
            self._go(self._nearest(self._cursor + step, step))
        else:
            self._scroll(self.scroll_offset.y + step)

    def action_page(self, step: int) -> None:
        """A screenful down or up."""
        before = self._cursor
        self._go(self._nearest(self._cursor + step * self._page_rows, step))
        if self._cursor == before:
            self._scroll(self.scroll_offset.y + step * self._page_rows)

    def action_edge(self, last: bool) -> None:  # noqa: FBT001 - an action's argument
        """The last or the first row."""
        end = len(self._rows) - 1 if last else 0
        self._go(self._nearest(end, -1 if last else 1))
        self._scroll(len(self._rows) if last else 0)

    def action_choose(self) -> None:
        """Open the row under the cursor."""
        if (key := self.cursor_key) is not None:
            self.post_message(self.Chosen(self, key))

    def on_click(self, event: Click) -> None:
        """Move the cursor there; a second click opens."""
        offset = event.get_content_offset(self)
        if offset is None or offset.y < self._header_rows:
            return
        index = self.scroll_offset.y + offset.y - self._header_rows
        if index < len(self._rows) and (key := self._rows.key(index)) is not None:
            if index == self._cursor:
                self.post_message(self.Chosen(self, key))
            else:
                self._go(index)

    # --- painting -----------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width = self.scrollable_content_region.width
        inner = max(width - GUTTER - 1, 1)
        if y < self._header_rows:
            header = self._rows.header(inner)
            return self._paint(header or (), width, " " * GUTTER, "")
        index = self.scroll_offset.y + y - self._header_rows
        if index >= len(self._rows):
            return self._paint((), width, "", "")
        on = self._shows_cursor and index == self._cursor and self._rows.key(index) is not None
        cursor = "" if not on else "listing--cursor" if self.has_focus else "listing--cursor-blurred"
        mark = "  " if not on else "▌ " if self.has_focus else "▏ "
        return self._paint(self._rows.line(index, inner), width, mark, cursor)

    def _paint(self, line: Line, width: int, mark: str, cursor: str) -> Strip:
        base = self.rich_style
        if cursor:
            base = self.get_component_rich_style(cursor)
        return paint(self, (Piece(mark, "accent"), *line), width, base)

    # --- geometry -----------------------------------------------------------------------------------------------

    @property
    def _shows_cursor(self) -> bool:
        return True

    @property
    def _follows(self) -> bool:
        """Whether the cursor is kept in sight."""
        return True

    @property
    def _header_rows(self) -> int:
        return 1 if len(self._rows) and self._rows.header(1) is not None else 0

    @property
    def _page_rows(self) -> int:
        return max(self.scrollable_content_region.height - self._header_rows, 1)

    def _measure(self) -> None:
        size = Size(1, len(self._rows) + self._header_rows)
        if size != self.virtual_size:
            self.virtual_size = size

    def on_resize(self, _event: Resize) -> None:
        """Keep the cursor in sight."""
        self._reveal()

    def _ahead(self, step: int) -> range:
        return range(self._cursor + step, len(self._rows) if step > 0 else -1, step)

    def _nearest(self, start: int, step: int) -> int:
        """The row at or after `start` in the direction of `step` that can be chosen, else the one before it."""
        last = len(self._rows) - 1
        if last < 0:
            return 0
        start = max(0, min(start, last))
        onward = range(start, last + 1) if step > 0 else range(start, -1, -1)
        backward = range(start, -1, -1) if step > 0 else range(start, last + 1)
        for index in chain(onward, backward):
            if self._rows.key(index) is not None:
                return index
        return start

    def _go(self, index: int) -> None:
        before, self._cursor = self._cursor, index
        if before != index:
            for changed in (before, index):
                self.refresh_line(changed + self._header_rows)
            self.post_message(self.Highlighted(self, self.cursor_key))
        self._reveal()

    def _reveal(self) -> None:
        """Scroll just as far as needed to have the cursor on the screen."""
        if not self._follows or not len(self._rows):
            return
        top = self.scroll_offset.y
        if self._cursor < top:
            self._scroll(self._cursor)
        elif self._cursor >= top + self._page_rows:
            self._scroll(self._cursor - self._page_rows + 1)

    def _scroll(self, y: int) -> None:
        self.scroll_to(y=max(y, 0), animate=False, force=True)


class Document(Listing):
    """Wrapped text in a list: made again for each width, from blocks that stay the same."""

    # What can be opened in a text says so there; most texts have nothing to open.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "open", key_display="enter", show=False)]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's own name
        super().__init__(id=id, classes=classes)
        self._blocks: tuple[Block, ...] = ()
        self._width = 0

    @property
    def _shows_cursor(self) -> bool:
        return self.has_focus

    @property
    def _follows(self) -> bool:
        return self.has_focus

    def on_focus(self) -> None:
        """The cursor appears: bring it into sight."""
        self._reveal()

    def tell(self, blocks: Sequence[Block], *, top: bool = False) -> None:
        """Show other text; `top` where it is about something else than before."""
        self._blocks = tuple(blocks)
        self._width = self.scrollable_content_region.width
        if self._width:
            self.show(compose(self._blocks, max(self._width - GUTTER - 1, 1)), top=top)

    def on_resize(self, _event: Resize) -> None:
        """Wrap again where the width is another."""
        if self.scrollable_content_region.width != self._width:
            self.tell(self._blocks)

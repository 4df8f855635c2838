"""The dialogs over every screen: help, the SQL of what is on the screen, and where to export it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input

from tui.document import Block
from tui.line import plain
from tui.text import clean
from tui.widgets.listing import Document
from tui.widgets.painting import Label

EXPORT_FORMATS: Final = ("json", "csv")


T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A box over the screen; Esc closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "close", "close", key_display="esc")]

    def action_close(self) -> None:
        """Back to what is beneath."""
        self.dismiss(None)


class TextDialog(Dialog[None]):
    """Text to be read, and copied with `y`."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("y", "copy", "copy")]

    def __init__(self, title: str, blocks: Sequence[Block], copied: str | None = None) -> None:
        super().__init__()
        self._title = title
        self._blocks = blocks
        self._copied = copied

    def compose(self) -> ComposeResult:
        """Title, text, keys."""
        with Vertical(classes="dialog"):
            yield Label(classes="dialog-title")
            yield Document(classes="dialog-text")
            yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Say it."""
        self.query_one(Label).said = plain(f" {self._title}", "strong")
        self.query_one(Document).tell(self._blocks)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be copied has the key for it."""
        return self._copied is not None if action == "copy" else super().check_action(action, parameters)

    def action_copy(self) -> None:
        """All of it, as it is meant to be pasted."""
        if self._copied is not None:
            copy(self, self._copied)


def copy(screen: Screen[Any], text: str) -> None:
    """To the clipboard of the person's own machine, by OSC 52, which not every terminal takes."""
    screen.app.copy_to_clipboard(text)
    screen.notify(
        "Copied through the terminal (OSC 52). Some terminals ignore that, macOS Terminal among them: x writes a file.",
        markup=False,
        timeout=5,
    )


def sql_dialog(sql: str) -> TextDialog:
    """The SQL of what is on the screen: a statement, or several under their names."""
    lines = sql.splitlines()
    statements = sum(line.startswith("-- ") for line in lines)
    many = f'The {statements} SQL statements of this screen: `provenance sql SOURCE "…"` runs one at a time'
    title = many if statements > 1 else 'The SQL of this screen: `provenance sql SOURCE "…"` repeats it'
    blocks = [Block("", line, "header" if statements > 1 and line.startswith("-- ") else "plain") for line in lines]
    return TextDialog(title, blocks, sql)


class Destination(NamedTuple):
    """Where to export to, and how."""

    path: Path
    format: str


class ExportDialog(Dialog[Destination]):
    """Asks for a file; its suffix is the format. An existing file is never overwritten."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+t,tab", "format", "json/csv", key_display="tab", priority=True),
        Binding("enter", "submit", "write"),
    ]

    def __init__(self, stem: str, row_count: int, now_unix_nano: int) -> None:
        super().__init__()
        moment = datetime.fromtimestamp(now_unix_nano // 1_000_000_000, tz=UTC)
        self._default = f"{stem}-{moment:%Y%m%dT%H%M%SZ}.{EXPORT_FORMATS[0]}"
        self._row_count = row_count

    def compose(self) -> ComposeResult:
        """A title, the path, what is wrong with it, keys."""
        with Vertical(classes="dialog -small"):
            yield Label(classes="dialog-title")
            yield Input(self._default, compact=True, select_on_focus=False)
            yield Label(id="export-note")
            yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Say what will be written."""
        self.query_one(Label).said = plain(
            f" Export {self._row_count:,} rows: enter writes, tab changes the format", "strong"
        )
        self._judge()

    def on_input_changed(self) -> None:
        """Judge the path while it is typed."""
        self._judge()

    def action_format(self) -> None:
        """The other format, by the other suffix."""
        field = self.query_one(Input)
        path = Path(field.value)
        others = [f for f in EXPORT_FORMATS if f != path.suffix[1:]]
        if path.name:
            field.value = str(path.with_suffix(f".{others[0]}"))

    def on_input_submitted(self) -> None:
        """Enter in the field."""
        self.action_submit()

    def action_submit(self) -> None:
        """Write, if the path can be written to."""
        if self._judge():
            path = Path(self.query_one(Input).value).expanduser()
            self.dismiss(Destination(path, path.suffix[1:]))

    def _judge(self) -> bool:
        path = Path(self.query_one(Input).value).expanduser()
        problem = _problem(path)
        said = plain(f" ✗ {problem}", "critical") if problem else plain(f" {clean(str(path.absolute()))}", "dim")
        self.query_one("#export-note", Label).said = said
        return problem is None


def _problem(path: Path) -> str | None:
    """Why this path cannot be written to, in words; None if it can."""
    if path.suffix[1:] not in EXPORT_FORMATS:
        return f"expected a name that ends in {' or '.join('.' + f for f in EXPORT_FORMATS)}"
    if path.exists():
        return "exists already; choose another name"
    if not path.absolute().parent.is_dir():
        return f"no directory {path.absolute().parent}"
    return None

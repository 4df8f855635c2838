"""What every full screen can do with what it shows: copy it, export it, show its SQL, explain its keys."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from collector.commands.output import write_frame
from collector.errors import CollectorError
from tui.document import Block
from tui.screens.dialogs import Destination, ExportDialog, TextDialog, copy, sql_dialog
from tui.snapshots import View
from tui.views import legend
from tui.widgets.panes import Export

if TYPE_CHECKING:
    from tui.app import Workbench


class Told(Message):
    """Something that a worker made to be shown: SQL, or the path that was written."""

    def __init__(self, *, sql: str | None = None, note: str | None = None, problem: str | None = None) -> None:
        super().__init__()
        self.sql = sql
        self.note = note
        self.problem = problem


class EvidenceScreen(Screen[None]):
    """A full screen over evidence."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "copy", "copy"),
        Binding("x", "export", "export"),
        Binding("D", "sql", "SQL"),
        Binding("question_mark", "help", "help", key_display="?"),
    ]

    @property
    def workbench(self) -> "Workbench":
        """The app, by its own type."""
        return cast("Workbench", self.app)

    def view(self) -> View:
        """The question that the screen answers."""
        raise NotImplementedError

    def copy_text(self) -> str | None:
        """The selected row's essentials."""
        raise NotImplementedError

    def export(self) -> Export:
        """What is on the screen."""
        raise NotImplementedError

    def action_copy(self) -> None:
        """Copy the selected row's essentials."""
        if (text := self.copy_text()) is not None:
            copy(self, text)
        else:
            self.notify("Nothing is selected.", markup=False)

    def action_sql(self) -> None:
        """Show the SQL; compiling it takes a moment, so a worker does."""
        view, evidence = self.view(), self.workbench.evidence
        self.workbench.ask(self, "sql", "the SQL", lambda: Told(sql=evidence.sql_of(view)))

    def action_export(self) -> None:
        """Ask for a file, and write what is on the screen."""
        export = self.export()
        if export.frame.is_empty():
            self.notify("There is nothing on this screen to export.", markup=False)
            return
        dialog = ExportDialog(export.stem, export.frame.height, self.workbench.clock())
        self.app.push_screen(dialog, partial(self._write, export))

    def _write(self, export: Export, destination: Destination | None) -> None:
        if destination is not None:
            self.workbench.ask(self, "export", "the export", lambda: _written(export, destination))

    def on_told(self, event: Told) -> None:
        """Show what the worker made."""
        event.stop()
        if event.sql is not None:
            self.app.push_screen(sql_dialog(event.sql))
        if event.note is not None:
            self.notify(event.note, markup=False, timeout=10)
        if event.problem is not None:
            self.notify(event.problem, severity="error", markup=False, timeout=10)

    def action_help(self) -> None:
        """Every key of this screen, from the bindings themselves, and every sign that it uses."""
        self.app.push_screen(TextDialog("Keys and signs", [*_key_blocks(self), *legend.blocks()]))


def _written(export: Export, destination: Destination) -> Told:
    try:
        with destination.path.open("x", encoding="utf-8", newline="") as stream:
            write_frame(export.frame, destination.format, stream)
    except (OSError, CollectorError) as error:
        return Told(problem=f"Nothing was written: {error}")
    return Told(note=f"Wrote {export.frame.height:,} rows to {destination.path.absolute()}")


def _key_blocks(screen: Screen[None]) -> Iterator[Block]:
    """Where the keys work, then each key and what it does, as the bindings say."""
    seen: set[tuple[str, str]] = set()
    sources = [screen, *screen.query("*").results(), screen.app]
    for node in sources:
        rows: dict[str, list[str]] = {}
        for _key, binding in node._bindings:  # noqa: SLF001 - Textual shows no public way to all bindings
            shown = screen.app.get_key_display(binding)
            if binding.description and not binding.system and (shown, binding.action) not in seen:
                seen.add((shown, binding.action))
                rows.setdefault(binding.description, []).append(shown)
        place = getattr(node, "KEYS_TITLE", None)
        if rows and place is not None:
            yield Block("", place, "header")
            yield from (Block(" ".join(dict.fromkeys(keys)), f" {what}") for what, keys in rows.items())
            yield Block("", "")

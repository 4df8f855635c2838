"""The lines above and below every screen: tabs on top, how things stand at the bottom."""

from dataclasses import replace
from typing import ClassVar, NamedTuple

from textual.events import Click
from textual.message import Message
from textual.reactive import reactive

from tui.line import Line, Piece
from tui.standing import Standing, render
from tui.text import clock_time
from tui.widgets.painting import OneLine


class Tab(NamedTuple):
    """One tab: the pane it shows, its title, and how many rows wait there."""

    pane: str
    title: str
    rows: int | None = None


class TabBar(OneLine):
    """The tabs on one line, the time at its end. A tab is chosen by its digit or a click."""

    tabs: reactive[tuple[Tab, ...]] = reactive(())
    active: reactive[str] = reactive("")
    now_unix_nano: reactive[int] = reactive(0)

    NAME: ClassVar[str] = " provenance "

    class Picked(Message):
        """A tab was clicked."""

        def __init__(self, pane: str) -> None:
            super().__init__()
            self.pane = pane

    def line(self, width: int) -> Line:
        """Name, tabs, UTC."""
        pieces = [Piece(self.NAME, "dim")]
        for number, tab in enumerate(self.tabs, 1):
            on = tab.pane == self.active
            count = "" if tab.rows is None else f" {tab.rows:,}"
            pieces.append(
                Piece(
                    f"[{number} {tab.title}{count}]" if on else f" {number} {tab.title}{count} ",
                    "tab" if on else "plain",
                )
            )
        clock = f"{clock_time(self.now_unix_nano)} " if self.now_unix_nano else ""
        used = sum(len(p.text) for p in pieces)
        return (*pieces, Piece(" " * max(width - used - len(clock), 1)), Piece(clock, "dim"))

    def on_click(self, event: Click) -> None:
        """Show the tab under the pointer."""
        x = len(self.NAME)
        for number, tab in enumerate(self.tabs, 1):
            count = "" if tab.rows is None else f" {tab.rows:,}"
            x += len(f" {number} {tab.title}{count} ")
            if event.x < x:
                if event.x >= len(self.NAME):
                    self.post_message(self.Picked(tab.pane))
                return


class StatusLine(OneLine):
    """How things stand; it turns while something is being asked."""

    standing: reactive[Standing | None] = reactive(None)

    def on_mount(self) -> None:
        """Follow the app."""
        self._spin = self.set_interval(0.12, self._turn, pause=True)
        self.watch(self.app, "standing", self._follow)

    def _follow(self, standing: Standing) -> None:
        self.standing = replace(standing, tick=self.standing.tick if self.standing is not None else 0)
        if standing.busy:
            self._spin.resume()
        else:
            self._spin.pause()

    def _turn(self) -> None:
        if self.standing is not None:
            self.standing = replace(self.standing, tick=self.standing.tick + 1)

    def line(self, width: int) -> Line:
        """What matters most, first."""
        return () if self.standing is None else render(self.standing, width)

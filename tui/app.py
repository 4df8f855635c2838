"""The workbench: one app, one source of evidence, questions on worker threads, answers as messages.

Nothing here or on a screen blocks the event loop: every question goes through `Workbench.ask`.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final, get_args

from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.message_pump import MessagePump
from textual.notifications import SeverityLevel
from textual.reactive import reactive
from textual.screen import Screen
from textual.theme import Theme
from textual.worker import Worker, WorkerState, get_current_worker

from collector.errors import CollectorError, SourceUnreachableError
from tui.messages import Answered, Failed
from tui.screens.main import MainScreen
from tui.snapshots import Findings, Health
from tui.source import Evidence, Lane
from tui.standing import Standing, without_problem
from tui.text import clean

NIGHT: Final = Theme(
    name="provenance-night",
    primary="#7aa2c9",
    secondary="#8fa3b8",
    accent="#86b6d9",
    foreground="#c5cdd6",
    background="#14181d",
    surface="#181d23",
    panel="#222a33",
    success="#8dbb8a",
    warning="#d9b66c",
    error="#e0736f",
    dark=True,
    variables={
        "footer-background": "#181d23",
        "footer-key-foreground": "#86b6d9",
        "footer-description-foreground": "#98a4b0",
        "scrollbar": "#2b3540",
        "scrollbar-background": "#181d23",
        "input-selection-background": "#7aa2c9 35%",
    },
)


class Workbench(App[None]):
    """The terminal workbench over one `Evidence`."""

    TITLE = "provenance"
    CSS_PATH = "workbench.tcss"
    ENABLE_COMMAND_PALETTE = True
    KEYS_TITLE: ClassVar[str] = "Everywhere"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "quit", show=False, priority=True),
    ]

    standing: reactive[Standing] = reactive(lambda: Standing("", is_live=False, now_unix_nano=0))

    def __init__(
        self, evidence: Evidence, *, refresh_seconds: float = 3.0, clock: Callable[[], int] = time.time_ns
    ) -> None:
        super().__init__()
        self.evidence = evidence
        self.refresh_seconds = refresh_seconds
        self.clock = clock
        self.register_theme(NIGHT)
        self.theme = NIGHT.name
        self.set_reactive(Workbench.standing, Standing(evidence.name, is_live=evidence.is_live, now_unix_nano=clock()))

    def get_default_screen(self) -> Screen[Any]:
        """Findings first."""
        return MainScreen()

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, asker: MessagePump, lane: str, what: str, question: Callable[[], Message]) -> None:
        """Answer a question on a thread and post the answer to the asker.

        A newer question of the same lane supersedes an older one: its query is interrupted and its answer dropped.
        A `CollectorError` becomes a `Failed`; any other exception is a defect of ours, and is shown as one.
        """
        if lane in get_args(Lane) and self.is_asking(lane):
            self.evidence.interrupt(lane)  # type: ignore[arg-type]
        self.run_worker(
            partial(_answer, self, asker, lane, what, question),
            name=what,
            group=lane,
            exclusive=True,
            exit_on_error=False,
            thread=True,
        )

    def is_asking(self, lane: str) -> bool:
        """Whether this lane has a question that is not answered yet."""
        return lane in _busy(self.workers)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """The spinner turns while anything is asked; a defect is told, never swallowed."""
        self.standing = replace(self.standing, busy=_busy(self.workers))
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            error = event.worker.error
            self.log.error(error)
            failed = Failed(event.worker.group, event.worker.name, f"defect in the workbench: {error!r}", is_lost=False)
            self.on_failed(failed)
            self.screen_stack[0].post_message(failed)

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,  # noqa: ARG002 - Textual's parameter: nothing here is ever parsed as markup
    ) -> None:
        """A toast: cleaned like every cell, for errors quote what strangers wrote."""
        super().notify(clean(message), title=clean(title), severity=severity, timeout=timeout, markup=False)

    # --- how things stand ---------------------------------------------------------------------------------------

    def note_time(self) -> None:
        """The clock has moved on."""
        self.standing = replace(self.standing, now_unix_nano=self.clock())

    def note_health(self, health: Health) -> None:
        """The source has answered: contact, if it was lost, is back."""
        if self.standing.lost_since_unix_nano is not None:
            self.notify(f"Contact with {self.standing.source} is back.", markup=False)
        self.standing = replace(self.standing, health=health, lost_since_unix_nano=None, now_unix_nano=self.clock())

    def note_findings(self, findings: Findings) -> None:
        """The detectors have run."""
        self.standing = replace(
            self.standing,
            finding_count=len(findings.items),
            worst=findings.worst,
            notes=findings.notes,
        )

    def on_answered(self, event: Answered) -> None:
        """An older problem with it is over."""
        self.standing = replace(self.standing, problems=without_problem(self.standing.problems, event.what))

    def on_failed(self, event: Failed) -> None:
        """Tell: on the status line until it is answered, and once in full."""
        now = self.clock()
        if event.is_lost:
            since = self.standing.lost_since_unix_nano
            self.standing = replace(
                self.standing, lost_since_unix_nano=now if since is None else since, now_unix_nano=now
            )
            if since is None:
                self.notify(event.reason, title="Lost contact", severity="warning", markup=False, timeout=8)
            return
        is_known = (event.what, event.reason) in self.standing.problems
        problems = (*without_problem(self.standing.problems, event.what), (event.what, event.reason))
        self.standing = replace(self.standing, problems=problems)
        if not is_known:
            self.notify(event.reason, title=f"No answer: {event.what}", severity="error", markup=False, timeout=10)

    # --- the end ------------------------------------------------------------------------------------------------

    async def action_quit(self) -> None:
        """Close the source first: a thread in a long query would hold up the exit."""
        await asyncio.to_thread(self.evidence.close)
        self.exit()

    def on_unmount(self) -> None:
        """However it ends."""
        self._interrupt_all()

    def _interrupt_all(self) -> None:
        for lane in get_args(Lane):
            self.evidence.interrupt(lane)


def _answer(app: Workbench, asker: MessagePump, lane: str, what: str, question: Callable[[], Message]) -> None:
    """On a worker's thread: ask, and post what came of it unless nobody waits for it any more."""
    worker = get_current_worker()
    try:
        message = question()
    except CollectorError as error:
        message = Failed(lane, what, str(error), is_lost=isinstance(error, SourceUnreachableError))
    if worker.is_cancelled:
        return
    if isinstance(message, Failed):
        app.post_message(message)
        message = Failed(lane, what, message.reason, is_lost=message.is_lost)
    else:
        app.post_message(Answered(what))
    asker.post_message(message)


def _busy(workers: Any) -> frozenset[str]:
    return frozenset(w.group for w in workers if not w.is_finished and not w.is_cancelled)

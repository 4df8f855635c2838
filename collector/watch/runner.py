"""The watch itself: rounds, memory and couriers around the pure machine. One thread decides; each sink has its own.

A round: is there anything new? then each detector in turn: look; decide; write the state with what is to be told; tell. In this order,
a kill at any point loses nothing: what was not written is found again, what was written is told again, with the same ids. And no
finding waits for the detectors after its own.
"""

import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from collector.errors import CollectorError, ConfigError
from collector.forensics.findings import KINDS, Kind
from collector.forensics.tables import NS_PER_S, Window
from collector.watch.delivery import Courier
from collector.watch.looking import Look, Looker
from collector.watch.machine import advance, advance_blind, standing
from collector.watch.messages import RESEND_NS
from collector.watch.model import MINUTE_NS, Coverage, Event, Marks, Patience, Row, State
from collector.watch.statefile import Memory, dump, read_marks, write_text

RECORD: Final = "stdout"
"""The sink that gets everything, silenced or not."""

SLOW_KINDS: Final[Mapping[Kind, float]] = {"egress": 10.0, "latency": 10.0}
"""Detectors that look again only after so many seconds, one of them a round: what they find needs that long to show or to settle."""

CATCH_UP_NS: Final = 24 * 60 * MINUTE_NS
"""How far back a watch looks for what came while it was down."""

AHEAD_NS: Final = MINUTE_NS
"""Clocks run ahead; what claims to be later than this is not looked at before its time."""

GRACE_S: Final = 5.0
NOTES_EVERY_S: Final = 600.0
TELL_EVERY_S: Final = 60.0


_FIGURES: Final = re.compile(r"[\d,.]+ ?%?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a watch goes about it.

    Attributes:
        source: What the user typed; the state belongs to it.
        kinds: Which detectors look, in this order.
        interval_s: Between the beginnings of two rounds, at least; and a round rests half as long as it worked.
        window_ns: How far back each round looks.
        patience: When it believes what it sees.
        state_file: None: a restart begins anew.
        run_s: It ends after so long; None: never.
        idle_s: It ends when nothing new came for so long and everything is told; None: never.
    """

    source: str
    kinds: Sequence[Kind] = KINDS
    interval_s: float = 5.0
    window_ns: int = 10 * MINUTE_NS
    patience: Patience = field(default_factory=Patience)
    state_file: Path | None = None
    run_s: float | None = None
    idle_s: float | None = None


@dataclass(slots=True)
class Watch:
    """One watch, from the memory that it begins with.

    Attributes:
        couriers: By sink, whose names the outbox uses.
        forgetful: Sinks that are told again what is open.
        record: Called with each event, and again after a kill: writes it to stdout; raises BrokenPipeError.
        complain: Called with a sentence for people.
        clock: ns since the Unix epoch.
    """

    plan: Plan
    looker: Looker
    memory: Memory
    record: Callable[[Event], None]
    complain: Callable[[str], None]
    couriers: Mapping[str, Courier] = field(default_factory=dict)
    forgetful: frozenset[str] = frozenset()
    clock: Callable[[], int] = time.time_ns
    _state: State = field(default_factory=State)
    _outbox: dict[str, deque[Event]] = field(default_factory=lambda: defaultdict(deque))
    _done: deque[tuple[str, str]] = field(default_factory=deque)
    _woken: threading.Condition = field(default_factory=threading.Condition)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _saved: tuple[int, str] = (0, "")
    _mark: object = None
    _seen: dict[Kind, object] = field(default_factory=dict)
    _looks: dict[Kind, Look] = field(default_factory=dict)
    _looked_at: dict[Kind, float] = field(default_factory=dict)
    _coverage: Coverage = field(default_factory=Coverage)
    _fresh_at: float = 0.0
    _resent_at: float = float("-inf")
    _noted_at: float = float("-inf")
    _noted: frozenset[str] = frozenset()
    _told: dict[str, float] = field(default_factory=dict)

    def run(self) -> State:
        """Watch until it is stopped or its time is over; the state at the end. Raises what the very first look raises."""
        self._remember()
        threading.Thread(target=self._interrupt_at_stop, name="watch-stop", daemon=True).start()
        begun = self._fresh_at = time.monotonic()
        for courier in self.couriers.values():
            courier.start()
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                self.round()
                took = time.monotonic() - started
                if took > self.plan.interval_s:
                    self._tell(
                        "slow",
                        f"a round took {took:.1f} s, the interval is {self.plan.interval_s:g} s: findings come later",
                    )
                if self._is_over(begun):
                    break
                self._rest(started + took + rest_s(took, self.plan.interval_s), begun)
        finally:
            self.stop()
            self._close()
        return self._state

    def stop(self) -> None:
        """From any thread, but not from a signal's handler, which may not take locks: end soon."""
        self._stopping.set()
        with self._woken:
            self._woken.notify_all()

    def finished(self, sink: str, event_ids: Sequence[str]) -> None:
        """From a courier's thread: these need not be kept any more."""
        with self._woken:
            self._done.extend((sink, event_id) for event_id in event_ids)
            self._woken.notify_all()

    def round(self) -> None:
        """Look if anything is new, decide, write, tell; raises what the very first look raises."""
        now = self.clock()
        marks = self._marks()
        try:
            self._round(now, marks)
        except CollectorError as e:
            if self._stopping.is_set():
                return  # it was interrupted
            if len(self._looks) < len(self.plan.kinds):
                raise
            self._tell("blind", f"nothing could be looked at: {e}")
            self._seen.clear()
            self._looked_at.clear()
            self._state, events = advance_blind(self._state, str(e), now, marks=marks, patience=self.plan.patience)
            self._put(events, marks, now)

    def _round(self, now: int, marks: Marks) -> None:
        mark = self.looker.mark()
        if mark != self._mark:
            self._mark, self._fresh_at = mark, time.monotonic()
        due = self._due(mark)
        if not due:
            # A silence may end, and statistics hold: what was seen last is still what is there.
            rows = [row for look in self._looks.values() for row in look.rows]
            self._decide(rows, None, marks, now)
            return
        window = self._window(now)
        self._coverage = self.looker.coverage(window)
        for kind in due:
            look = self._looks[kind] = self.looker.look(kind, window)
            self._looked_at[kind] = time.monotonic()
            # The mark from before the look: what came meanwhile is looked at again.
            self._seen[kind] = mark
            self._decide(look.rows, {kind}, marks, now)
            self._note(look.notes)
        self._state = replace(self._state, looked_until_unix_nano=now)
        self._save()

    def _due(self, mark: object) -> list[Kind]:
        """The detectors that have not seen what came, and whose time it is; of the slow ones the one that waits longest."""
        behind = [kind for kind in self.plan.kinds if kind not in self._seen or self._seen[kind] != mark]
        waited = {kind: time.monotonic() - self._looked_at.get(kind, float("-inf")) for kind in behind}
        slow = [kind for kind in behind if kind in self._looked_at and 0 < SLOW_KINDS.get(kind, 0.0) <= waited[kind]]
        turn = max(slow, key=lambda kind: waited[kind], default=None)
        return [kind for kind in behind if kind not in self._looked_at or kind not in SLOW_KINDS or kind == turn]

    def _window(self, now: int) -> Window:
        since = now - self.plan.window_ns
        if self._state.looked_until_unix_nano and (not self._looks or self._state.blind_since_unix_nano):
            since = min(since, self._state.looked_until_unix_nano - self.plan.window_ns)
        return Window(max(since, now - max(CATCH_UP_NS, self.plan.window_ns), 0), now + AHEAD_NS)

    def _decide(self, rows: Sequence[Row], kinds: Container[str] | None, marks: Marks, now: int) -> None:
        self._state, events = advance(
            self._state, rows, self._coverage, now, kinds=kinds, marks=marks, patience=self.plan.patience
        )
        if self._state.beyond:
            self._tell("beyond", f"{self._state.beyond:,} findings are too many to be followed and are not told")
        self._put(events, marks, now)

    def _put(self, events: Sequence[Event], marks: Marks, now: int) -> None:
        """Write the state with what is to be told, then tell it."""
        loud = [event for event in events if not event.quiet]
        self._outbox[RECORD].extend(events)
        for sink in self.couriers:
            self._outbox[sink].extend(loud)
        again = time.monotonic() - self._resent_at >= RESEND_NS / NS_PER_S
        if again:
            self._resent_at = time.monotonic()
        self._save()
        stands = standing(self._state, marks, now)
        for sink, courier in self.couriers.items():
            if loud:
                courier.offer(loud, stands if sink in self.forgetful else ())
            elif again and sink in self.forgetful:
                courier.refresh(stands)
        if self._outbox[RECORD]:
            while self._outbox[RECORD]:
                self.record(self._outbox[RECORD][0])
                self._outbox[RECORD].popleft()
            self._save()

    def _remember(self) -> None:
        """Take up the memory: what was not delivered is offered again, what belongs to sinks that are gone is told and dropped."""
        self._state = self.memory.state
        for sink, events in self.memory.outbox.items():
            if sink == RECORD:
                self._outbox[sink].extend(events)
            elif sink in self.couriers:
                self._outbox[sink].extend(events)
                self.couriers[sink].offer(events)
            elif events:
                self.complain(f"{len(events)} events wait for a sink that is not given any more ({sink}): dropped")
        if self._state.open:
            self.complain(
                f"{len(self._state.open)} findings are open from before; `provenance watch --list` shows them"
            )

    def _rest(self, until: float, begun: float) -> None:
        """Wait for the next round, writing down meanwhile what was delivered."""
        if self.plan.run_s is not None:
            until = min(until, begun + self.plan.run_s)
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            with self._woken:
                self._woken.wait_for(lambda: bool(self._done) or self._stopping.is_set(), left)
            self._strike_off()

    def _strike_off(self) -> None:
        """What was delivered or given up is kept no longer."""
        gone: defaultdict[str, set[str]] = defaultdict(set)
        while self._done:
            sink, event_id = self._done.popleft()
            gone[sink].add(event_id)
        for sink, ids in gone.items():
            self._outbox[sink] = deque(event for event in self._outbox[sink] if event.event_id not in ids)
        if gone:
            self._save()

    def _save(self) -> None:
        path = self.plan.state_file
        if path is None:
            return
        outbox = {sink: tuple(events) for sink, events in self._outbox.items() if events}
        # When it last looked changes with every round, and is worth a write a minute.
        looked = self._state.looked_until_unix_nano // MINUTE_NS
        text = dump(Memory(self.plan.source, self._state, outbox))
        told = (looked, _without_time(text))
        if told == self._saved:
            return
        try:
            write_text(path, text)
        except ConfigError as e:
            self._tell("state", f"{e}; a restart will tell again what is told from now on")
        else:
            self._saved = told

    def _marks(self) -> Marks:
        if self.plan.state_file is None:
            return Marks()
        try:
            return read_marks(self.plan.state_file)
        except ConfigError as e:
            self._tell("marks", f"{e}; nothing counts as acknowledged or silenced")
            return Marks()

    def _is_over(self, begun: float) -> bool:
        now = time.monotonic()
        if self.plan.run_s is not None and now - begun >= self.plan.run_s:
            return True
        doubted = any(record.doubted_since_unix_nano is not None for record in self._state.records.values())
        behind = any(kind not in self._seen or self._seen[kind] != self._mark for kind in self.plan.kinds)
        idle = self.plan.idle_s is not None and now - self._fresh_at >= self.plan.idle_s and not (doubted or behind)
        return idle and all(courier.is_idle for courier in self.couriers.values())

    def _close(self) -> None:
        """Give what is on its way a moment, and write down what is left."""
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and not all(courier.is_idle for courier in self.couriers.values()):
            with self._woken:
                self._woken.wait(0.05)
        for courier in self.couriers.values():
            courier.stop(max(0.1, deadline - time.monotonic()))
        self._strike_off()
        self._save()
        left = sum(len(events) for sink, events in self._outbox.items() if sink != RECORD)
        if left:
            kept = "lost" if self.plan.state_file is None else "kept for the next run"
            self.complain(f"{left} events could not be delivered in time: {kept}")
        self.looker.close()

    def _interrupt_at_stop(self) -> None:
        self._stopping.wait()
        self.looker.interrupt()

    def _note(self, notes: Sequence[str]) -> None:
        """What could not be seen: each sentence once, and again after a while; its figures change with every round."""
        if time.monotonic() - self._noted_at >= NOTES_EVERY_S:
            self._noted_at, self._noted = time.monotonic(), frozenset()
        for note in notes:
            about = _FIGURES.sub("", note)
            if about not in self._noted:
                self._noted |= {about}
                self.complain(note)

    def _tell(self, about: str, text: str) -> None:
        """A complaint, at most once a minute about the same."""
        if time.monotonic() - self._told.get(about, float("-inf")) >= TELL_EVERY_S:
            self._told[about] = time.monotonic()
            self.complain(text)


def rest_s(took_s: float, interval_s: float) -> float:
    """Seconds between the end of a round and the next: what is left of the interval, and half as long as it worked.

    Not more than an interval: the first round compiles every question, and what happens meanwhile must not wait for it twice.
    """
    return max(interval_s - took_s, min(took_s / 2, interval_s))


def _without_time(text: str) -> str:
    """The state's text without the moment of its last look, to tell whether anything else changed."""
    head, _, rest = text.partition('"looked_until_unix_nano":')
    return head + rest.partition(",")[2]

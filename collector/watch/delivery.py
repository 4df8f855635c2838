"""Delivery that never stops detection: a thread a sink, a bounded queue, retries with backoff, and giving up told.

    Outcome           what became of one attempt: Delivered, Later(why, after seconds), Refused(why)
    Courier.offer     events, in order; never blocks
    Courier.refresh   what stands, to be told again when nothing is waiting: Alertmanager forgets
    on_done(ids)      from the courier's thread: these need not be kept any more, delivered or given up

Attempts are repeated after 0.5 s, doubling up to a minute, each with full jitter (the peers that fail together must not return
together), or after what the other side asked for with Retry-After, up to five minutes. An event that is still not delivered after an hour is
given up, and that is told. Events keep their order: a resolution never overtakes its opening.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

from collector.forensics.tables import NS_PER_S
from collector.watch.model import Event

MOST_WAITING: Final = 1_000
GIVE_UP_NS: Final = 3_600 * NS_PER_S
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 60.0
LONGEST_ASKED_S: Final = 300.0

_TELL_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """It arrived."""


@dataclass(frozen=True, slots=True)
class Later:
    """It did not arrive, and may another time: why, and after how many seconds the other side wants to be asked."""

    why: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """It will never be taken: why."""

    why: str


Outcome = Delivered | Later | Refused


class Sender(Protocol):
    """One way to tell. `name` is for messages, and holds no secret; `batch`: events in one sending, at most."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def batch(self) -> int:
        """Events in one sending, at most."""

    @property
    def attempts(self) -> int | None:
        """How often an event is tried at most; None: until it is too old."""

    def send(self, events: Sequence[Event]) -> Outcome:
        """Send these; raises nothing."""

    def stop(self) -> None:
        """From another thread: what is being sent is to end soon."""


def outcome_of(status: int, retry_after: str | None, now_unix_nano: int) -> Outcome:
    """What an HTTP status means: 2xx arrived, 408, 425, 429 and 5xx later, everything else never."""
    if 200 <= status < 300:
        return Delivered()
    if status in {408, 425, 429} or status >= 500:
        return Later(f"it answered {status}", retry_after_s(retry_after, now_unix_nano))
    if 300 <= status < 400:
        return Refused(f"it answered {status}, and redirects are not followed: give the final URL")
    return Refused(f"it answered {status}")


def retry_after_s(text: str | None, now_unix_nano: int) -> float | None:
    """Seconds of a Retry-After header, which has seconds or a date, at most `LONGEST_ASKED_S`; None where it says nothing."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_ASKED_S)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    now = datetime.fromtimestamp(now_unix_nano / NS_PER_S, UTC)
    return min(max((moment - now).total_seconds(), 0.0), LONGEST_ASKED_S)


def delay_s(attempt: int, chance: float) -> float:
    """Seconds before the attempt after this many failed ones; `chance` is uniform in 0 to 1."""
    return chance * min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 20))


@dataclass(slots=True)
class Courier:
    """One sink's thread and what waits for it.

    Attributes:
        sender: How to tell.
        on_done: Called with ids that need not be kept any more.
        complain: Called with a sentence for people.
        clock: ns since the Unix epoch.
        chance: Uniform in 0 to 1.
        most: Events that may wait; the oldest is given up for the newest.
    """

    sender: Sender
    on_done: Callable[[Sequence[str]], None]
    complain: Callable[[str], None]
    clock: Callable[[], int] = time.time_ns
    chance: Callable[[], float] = random.random
    most: int = MOST_WAITING
    _waiting: deque[Event] = field(default_factory=deque)
    _standing: tuple[Event, ...] = ()
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False
    _thread: threading.Thread | None = None
    _failures: int = 0
    _single: int = 0
    _told_s: float = float("-inf")

    def start(self) -> None:
        """Begin to deliver."""
        self._thread = threading.Thread(target=self._run, name=f"courier {self.sender.name}", daemon=True)
        self._thread.start()

    def offer(self, events: Sequence[Event], standing: Sequence[Event] = ()) -> None:
        """Let these be delivered after what waits already, and then what stands after them; see `refresh`."""
        with self._changed:
            self._waiting.extend(events)
            # What stood before them may be resolved by them: telling it after them would open it again.
            self._standing = tuple(standing)
            excess = [self._waiting.popleft() for _ in range(len(self._waiting) - self.most)]
            self._changed.notify_all()
        if excess:
            self.complain(f"{self.sender.name}: {len(excess)} events given up: more than {self.most:,} were waiting")
            self.on_done([event.event_id for event in excess])

    def refresh(self, events: Sequence[Event]) -> None:
        """Let this be told again as soon as nothing else waits; it replaces what was to be told again before."""
        with self._changed:
            self._standing = tuple(events)
            self._changed.notify_all()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing is on its way."""
        with self._changed:
            return not self._waiting

    def stop(self, grace_s: float) -> None:
        """End, within this time if what is on its way allows; what is not delivered stays the caller's."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.sender.stop()
        if self._thread is not None:
            self._thread.join(grace_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting or self._standing)
                if self._stopping:
                    return
                batch = [self._waiting[i] for i in range(min(len(self._waiting), self._batch()))]
                standing, self._standing = self._standing, () if not batch else self._standing
            if batch:
                self._deliver(batch)
            else:
                self._tell_again(standing)

    def _batch(self) -> int:
        """One by one after a refusal, so that what is refused takes nothing with it."""
        return 1 if self._single else self.sender.batch

    def _deliver(self, batch: list[Event]) -> None:
        outcome = self.sender.send(batch)
        match outcome:
            case Delivered():
                self._failures = 0
                self._done(batch)
            case Refused(why) if len(batch) == 1:
                self.complain(f"{self.sender.name}: {_named(batch)} given up: {why}")
                self._failures = 0
                self._done(batch)
            case Refused():
                self._single = len(batch)
            case Later(why, after_s):
                self._failures += 1
                self._give_up_the_old(batch, why)
                self._pause(why, after_s)

    def _give_up_the_old(self, batch: list[Event], why: str) -> None:
        limit = self.sender.attempts
        if limit is not None and self._failures >= limit:
            old = batch
        else:
            old = [event for event in batch if self.clock() - event.at_unix_nano >= GIVE_UP_NS]
        if old:
            self.complain(f"{self.sender.name}: {_named(old)} given up: {why}")
            self._failures = 0
            self._done(old)

    def _pause(self, why: str, after_s: float | None) -> None:
        delay = delay_s(self._failures, self.chance()) if after_s is None else after_s
        if time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            self.complain(f"{self.sender.name}: not delivered, tried again: {why}")
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, delay)

    def _tell_again(self, standing: Sequence[Event]) -> None:
        for begin in range(0, len(standing), self.sender.batch):
            outcome = self.sender.send(standing[begin : begin + self.sender.batch])
            if not isinstance(outcome, Delivered) and time.monotonic() - self._told_s >= _TELL_EVERY_S:
                self._told_s = time.monotonic()
                self.complain(f"{self.sender.name}: what is open could not be told again: {outcome.why}")

    def _done(self, events: Sequence[Event]) -> None:
        gone = {id(event) for event in events}
        with self._changed:
            self._waiting = deque(event for event in self._waiting if id(event) not in gone)
            self._single = max(0, self._single - len(events))
        self.on_done([event.event_id for event in events])


def _named(events: Sequence[Event]) -> str:
    first = f"{events[0].event_id} ({events[0].what})"
    return first if len(events) == 1 else f"{first} and {len(events) - 1} more"

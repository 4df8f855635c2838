"""Rounds: what is looked at when, and that a kill at any point loses nothing and invents nothing."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.errors import QueryError, SourceUnreachableError
from collector.forensics.tables import Window
from collector.watch.delivery import Courier, Delivered, Outcome
from collector.watch.looking import Look
from collector.watch.machine import BLIND_ID
from collector.watch.model import MINUTE_NS, Coverage, Event, Patience
from collector.watch.runner import CATCH_UP_NS, RECORD, Plan, Watch, rest_s
from collector.watch.statefile import changed_marks, read_memory
from tests.collector.watch.watch_rows import START, S, finding, reports
from tests.collector.watch.webhook_server import wait_for

SOURCE = "http://127.0.0.1:4318"


class KilledError(BaseException):
    """The process is gone."""


@dataclass
class Looking:
    """A source as tests script it: the mark, the rows, and an error to raise instead."""

    at: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    minute: int = 1
    error: Exception | None = None
    windows: list[Window] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    looking: Callable[[], object] = lambda: None

    def mark(self) -> object:
        if self.error:
            raise self.error
        return self.at

    def coverage(self, window: Window) -> Coverage:
        return reports(self.minute)

    def look(self, kind: str, window: Window) -> Look:
        self.windows.append(window)
        self.kinds.append(kind)
        self.looking()
        return Look([row for row in self.rows if row["kind"] == kind])

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Dropped:
    """A sender that is never started: what it is offered stays in the outbox."""

    name: str = "dropped"
    batch: int = 9
    attempts: int | None = None

    def send(self, events: Sequence[Event]) -> Outcome:
        return Delivered()

    def stop(self) -> None:
        pass


@dataclass
class Bench:
    """A watch over a script, a clock that tests move, and everything that it said."""

    path: Path | None = None
    looking: Looking = field(default_factory=Looking)
    now: int = START + 5 * S
    told: list[Event] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    patience: Patience = field(default_factory=Patience)

    def watch(self, record: Callable[[Event], None] | None = None, **plan: Any) -> Watch:
        from collector.watch.model import State
        from collector.watch.statefile import Memory

        memory = Memory(SOURCE, State(), {}) if self.path is None else read_memory(self.path, SOURCE)
        made = Watch(
            plan=Plan(
                **({"source": SOURCE, "kinds": ("shadow",), "state_file": self.path, "patience": self.patience} | plan)
            ),
            looker=self.looking,
            memory=memory,
            record=record or self.told.append,
            complain=self.said.append,
            couriers={"sink": Courier(Dropped(), lambda _: None, self.said.append)},
            clock=lambda: self.now,
        )
        made._remember()
        return made

    def outbox(self) -> list[str]:
        assert self.path is not None
        return [e.event_id for e in read_memory(self.path, SOURCE).outbox.get("sink", ())]


def test_a_round_without_anything_new_asks_for_the_mark_alone() -> None:
    bench = Bench()
    watch = bench.watch()
    for _ in range(5):
        watch.round()
    assert len(bench.looking.windows) == 1
    bench.looking.at += 1
    watch.round()
    assert len(bench.looking.windows) == 2


def test_what_comes_during_a_look_is_looked_at_again() -> None:
    bench = Bench()
    watch = bench.watch()
    bench.looking.looking = lambda: setattr(bench.looking, "at", 7)
    watch.round()
    watch.round()
    watch.round()
    assert len(bench.looking.windows) == 2


def test_what_needs_time_to_show_is_looked_for_less_often_and_not_forgotten() -> None:
    bench = Bench()
    watch = bench.watch(kinds=("shadow", "latency"))
    watch.round()
    bench.looking.at = 1
    watch.round()
    watch.round()
    assert bench.looking.kinds == ["shadow", "latency", "shadow"]
    watch._looked_at["latency"] -= 10
    watch.round()  # nothing came since, but it has not seen what came before
    watch.round()
    assert bench.looking.kinds == ["shadow", "latency", "shadow", "latency"]


def test_what_needs_time_takes_turns() -> None:
    bench = Bench()
    watch = bench.watch(kinds=("shadow", "egress", "latency"))
    watch.round()
    watch._looked_at["egress"] -= 20
    watch._looked_at["latency"] -= 21
    for at in (1, 2, 3):
        bench.looking.at = at
        watch.round()
    assert bench.looking.kinds[3:] == ["shadow", "latency", "shadow", "egress", "shadow"]


def test_a_finding_is_told_before_the_next_detector_looks() -> None:
    bench = Bench()
    bench.looking.rows = [finding()]
    seen: list[int] = []
    bench.looking.looking = lambda: seen.append(len(bench.told))
    bench.watch(kinds=("shadow", "egress")).round()
    assert seen == [0, 1]


def test_a_look_for_one_kind_concludes_nothing_about_others() -> None:
    bench = Bench()
    bench.looking.rows = [
        finding(),
        finding(kind="egress", reasons=("unlisted",), callee=None, destination="203.0.113.9"),
    ]
    watch = bench.watch(kinds=("shadow", "egress"))
    for at in range(5):
        bench.looking.at = at
        watch.round()
        watch._looked_at.clear()
        bench.now += 5 * S
    assert [(e.what, e.row["kind"]) for e in bench.told] == [("opened", "shadow"), ("opened", "egress")]


def test_each_round_looks_back_by_the_window() -> None:
    bench = Bench()
    bench.watch().round()
    assert bench.looking.windows == [Window(bench.now - 10 * MINUTE_NS, bench.now + MINUTE_NS)]


@pytest.mark.parametrize(("down_ns", "since_ns"), [(3600 * S, 4200 * S), (10 * CATCH_UP_NS, CATCH_UP_NS)])
def test_after_a_pause_it_looks_at_what_it_missed(tmp_path: Path, down_ns: int, since_ns: int) -> None:
    bench = Bench(tmp_path / "w.json")
    bench.watch().round()
    bench.now += down_ns
    bench.watch().round()
    assert bench.looking.windows[-1].since_unix_nano == bench.now - since_ns


def test_a_restart_tells_nothing_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w.json")
    bench.looking.rows = [finding()]
    bench.watch().round()
    bench.now += 60 * S
    bench.watch().round()
    assert [e.what for e in bench.told] == ["opened"]
    assert bench.said == ["1 findings are open from before; `provenance watch --list` shows them"]


def test_the_first_look_must_succeed_and_later_ones_need_not() -> None:
    bench = Bench()
    watch = bench.watch()
    bench.looking.error = SourceUnreachableError("nobody there")
    with pytest.raises(SourceUnreachableError):
        watch.round()
    bench.looking.error = None
    watch.round()
    bench.looking.error = QueryError("out of memory")
    for _ in range(20):
        watch.round()
        bench.now += 5 * S
    assert bench.said == ["nothing could be looked at: out of memory"]
    assert [e.row["finding_id"] for e in bench.told] == [BLIND_ID]
    bench.looking.error = None
    watch.round()
    assert [e.what for e in bench.told] == ["opened", "resolved"]
    # What came while it was blind is looked at too, although that is longer ago than a window reaches.
    assert bench.looking.windows[-1].since_unix_nano == START + 5 * S - 10 * MINUTE_NS


def test_marks_count_from_the_next_round_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w.json")
    bench.looking.rows = [finding()]
    watch = bench.watch()
    watch.round()
    with changed_marks(tmp_path / "w.json") as (acknowledged, _):
        acknowledged[finding()["finding_id"]] = bench.now
    bench.looking.rows, bench.looking.at = [finding(count=50)], 1
    bench.now += 5 * S
    watch.round()
    assert [(e.what, e.quiet) for e in bench.told] == [("opened", False), ("updated", True)]
    assert bench.outbox() == [bench.told[0].event_id]


def test_broken_marks_are_told_and_stop_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w.json")
    (tmp_path / "w.json.marks").write_text("{")
    bench.looking.rows = [finding()]
    bench.watch().round()
    assert [e.what for e in bench.told] == ["opened"]
    assert "holds no marks" in bench.said[0]


def test_a_disk_that_is_full_is_told_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    bench = Bench(tmp_path / "w.json")
    bench.looking.rows = [finding()]
    watch = bench.watch()
    monkeypatch.setattr(os, "fsync", full)
    watch.round()
    assert [e.what for e in bench.told] == ["opened"]
    assert "No space left on device" in bench.said[0]


def test_events_of_a_sink_that_is_gone_are_dropped_aloud(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w.json")
    bench.looking.rows = [finding()]
    bench.watch().round()
    watch = bench.watch()
    watch.couriers = {}
    watch._outbox.clear()
    watch._remember()
    assert "1 events wait for a sink that is not given any more (sink): dropped" in bench.said


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.sampled_from(["", "told", "telling", "looked"])), max_size=8
)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_kill_at_any_point_loses_no_event_and_invents_none(tmp_path: Path, steps: list[tuple[int, int, str]]) -> None:
    """Killed before the state is written, while events are told, and after: the record is the outbox's, in order, repeats aside."""
    path = tmp_path / "w.json"
    for file in tmp_path.iterdir():
        file.unlink()
    bench = Bench(path)
    state = [bench.watch()]
    for findings, minute, killed in steps:
        bench.now += 45 * S
        bench.looking.at += 1
        bench.looking.minute = minute
        bench.looking.rows = [finding(callee=f"s{n}", last_seen_unix_nano=bench.now - 40 * S) for n in range(findings)]
        watch = state[0]

        def dying(event: Event, killed: str = killed) -> None:
            if killed == "telling":
                raise KilledError
            bench.told.append(event)
            if killed == "told":
                raise KilledError

        def vanish(killed: str = killed) -> None:
            if killed == "looked":
                raise KilledError

        watch.record, bench.looking.looking = dying, vanish
        try:
            watch.round()
        except KilledError:
            state[0] = bench.watch()
    bench.looking.looking = lambda: None
    last = bench.watch()
    last.round()

    told = list(dict.fromkeys(e.event_id for e in bench.told))
    assert told == bench.outbox()  # nothing was ever delivered from it, so it has all that was decided
    is_open: dict[str, bool] = {}
    for event in {e.event_id: e for e in bench.told}.values():
        assert is_open.get(event.row["finding_id"], False) is (event.what != "opened")
        is_open[event.row["finding_id"]] = event.what != "resolved"
    state_on_disk = read_memory(path, SOURCE)
    assert {r.finding_id for r in state_on_disk.state.open} == {key for key, still in is_open.items() if still}
    assert RECORD not in state_on_disk.outbox


def test_it_runs_until_nothing_new_comes_and_delivers_what_it_found(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w.json")
    bench.looking.rows = [finding()]
    watch = bench.watch(interval_s=0.01, idle_s=0.05)
    arrived: list[str] = []

    @dataclass
    class Arriving(Dropped):
        def send(self, events: Sequence[Event]) -> Outcome:
            arrived.extend(e.event_id for e in events)
            return Delivered()

    watch.couriers = {"sink": Courier(Arriving(), lambda ids: watch.finished("sink", ids), bench.said.append)}
    state = watch.run()
    assert [r.phase for r in state.open] == ["open"]
    assert arrived == [bench.told[0].event_id]
    assert bench.outbox() == []


def test_it_stops_when_it_is_told_to_and_ends_after_its_time() -> None:
    bench = Bench()
    watch = bench.watch(interval_s=300)
    thread = threading.Thread(target=watch.run)
    thread.start()
    wait_for(lambda: bool(bench.looking.windows))
    watch.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert Bench().watch(interval_s=300, run_s=0.05).run().open == []


@pytest.mark.parametrize(("took", "rest"), [(0.0, 5.0), (2.0, 3.0), (4.4, 2.2), (8.0, 4.0), (85.0, 5.0)])
def test_a_round_rests_half_as_long_as_it_worked(took: float, rest: float) -> None:
    assert rest_s(took, 5.0) == pytest.approx(rest)


def test_a_round_that_takes_longer_than_the_interval_is_told() -> None:
    bench = Bench()
    bench.looking.looking = lambda: threading.Event().wait(0.05)
    bench.watch(interval_s=0.001, run_s=0.04).run()
    assert len(bench.looking.windows) == 1
    assert "a round took 0.1 s, the interval is 0.001 s: findings come later" in bench.said

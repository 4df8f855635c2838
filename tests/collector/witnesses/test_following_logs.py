"""Following access logs: each line once, whatever happens to the file and to the collector."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pytest

from collector.errors import StoreError, StoreFullError
from collector.witnesses.envoy import MAX_LINE_BYTES
from collector.witnesses.follow import CHUNK_BYTES, Follower, LogFile, Position, positions_from

DEADLINE = 10


class FakeStore:
    """A writer that keeps what is committed, and fails when told to."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.errors: Counter[str] = Counter()
        self.positions: dict[str, Position] = {}
        self.refusals: list[StoreError] = []
        self.failures: list[StoreError] = []

    def append(self, batches: Mapping[str, pa.RecordBatch]) -> Future[None]:
        if self.refusals:
            raise self.refusals.pop()
        done: Future[None] = Future()
        if self.failures:
            done.set_exception(self.failures.pop())
            return done
        if "proxy_records" in batches:
            self.paths += batches["proxy_records"].column("path").to_pylist()
        if "ingest_errors" in batches:
            for row in batches["ingest_errors"].to_pylist():
                self.errors[row["reason"]] += row["count"]
        self.positions |= positions_from(batches["access_logs"].to_pylist())
        done.set_result(None)
        return done


def line(n: int | str, **more: object) -> str:
    return json.dumps({"start_time": f"2026-01-01T00:00:00.{len(str(n)):03}Z", "path": str(n)} | more) + "\n"


def lines(*numbers: int | str) -> str:
    return "".join(line(n) for n in numbers)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        threading.Event().wait(0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def follow(log: Path, store: FakeStore) -> Iterator[Callable[[], Follower]]:
    """Starts a follower that knows what the store knows; as a restarted collector does."""
    followers = []

    def start() -> Follower:
        follower = Follower([LogFile(log, "checkout", "inbound")], store, dict(store.positions)).start()
        followers.append(follower)
        return follower

    yield start
    for follower in followers:
        follower.close()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_it_reads_from_the_start_and_goes_on(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    log.write_text(lines(1, 2))
    follow()
    until(lambda: store.paths == ["1", "2"])
    append(log, lines(3))
    until(lambda: store.paths == ["1", "2", "3"])


def test_a_file_that_does_not_exist_yet_is_waited_for(
    log: Path, store: FakeStore, follow: Callable[[], Follower]
) -> None:
    follower = follow()
    until(lambda: follower.status()[0]["error"] == "the file does not exist yet")
    log.write_text(lines(1))
    until(lambda: store.paths == ["1"])
    until(lambda: follower.status()[0]["error"] is None)


def test_a_partial_last_line_waits_for_its_end(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    whole = line(2)
    log.write_text(line(1) + whole[:20])
    follower = follow()
    until(lambda: store.paths == ["1"])
    until(lambda: follower.status()[0]["lag_bytes"] == 20)
    append(log, whole[20:])
    until(lambda: store.paths == ["1", "2"])
    assert store.errors.total() == 0


def test_rotation_by_rename(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    log.write_text(lines(1))
    follow()
    until(lambda: store.paths == ["1"])
    old = log.rename(log.with_name("access.log.1"))
    append(old, lines(2))  # the proxy has not reopened yet
    until(lambda: store.paths == ["1", "2"])
    log.touch()  # logrotate's `create`
    append(old, lines(3))
    until(lambda: store.paths == ["1", "2", "3"])
    append(old, line(4).rstrip("\n"))  # its last words
    append(log, lines(5))
    until(lambda: store.paths == ["1", "2", "3", "4", "5"])
    append(log, lines(6))
    until(lambda: store.paths[-1] == "6")


def rotate(log: Path, text: str) -> None:
    """As logrotate does with numbers, and its new file is written to at once."""
    for n in (2, 1):
        if (old := log.with_name(f"access.log.{n}")).exists():
            old.rename(log.with_name(f"access.log.{n + 1}"))
    log.rename(log.with_name("access.log.1"))
    log.write_text(text)


def test_several_rotations_while_the_store_takes_nothing(
    log: Path, store: FakeStore, follow: Callable[[], Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.witnesses.follow.RETRY_SECONDS", 0.01)
    log.write_text(lines(1))
    follower = follow()
    until(lambda: store.paths == ["1"])
    store.refusals = [StoreError("disk full")] * 1_000_000
    append(log, lines(2))
    until(lambda: follower.status()[0]["error"] == "disk full")
    for n, text in enumerate([lines(3, 4), lines(5), lines(6)]):
        os.utime(log, (1000 + n, 1000 + n))
        rotate(log, text)
    store.refusals.clear()

    until(lambda: store.paths == ["1", "2", "3", "4", "5", "6"])
    append(log, lines(7))
    until(lambda: store.paths[-1] == "7")
    assert store.errors.total() == 0


def test_rotations_that_cannot_be_ordered_are_noted(
    log: Path, store: FakeStore, follow: Callable[[], Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.witnesses.follow.RETRY_SECONDS", 0.01)
    log.write_text(lines(1))
    follower = follow()
    until(lambda: store.paths == ["1"])
    store.refusals = [StoreError("disk full")] * 1_000_000
    append(log, lines(2))
    until(lambda: follower.status()[0]["error"] == "disk full")
    os.utime(log, (1000, 1000))
    rotate(log, lines(3))
    log.with_name("access.log.1").unlink()  # compressed, say
    rotate(log, lines(4))
    store.refusals.clear()

    until(lambda: store.paths == ["1", "2", "4"])
    until(lambda: store.errors == {"rotated more than once before it was read: lines between were not read": 1})


def test_truncation(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    log.write_text(lines(1, 2, 3))
    follow()
    until(lambda: len(store.paths) == 3)
    os.truncate(log, 0)
    append(log, lines("new"))
    until(lambda: store.paths[3:] == ["new"])


def test_truncation_that_has_grown_past_the_old_place(
    log: Path, store: FakeStore, follow: Callable[[], Follower]
) -> None:
    log.write_text(lines(1))
    follow()
    until(lambda: store.paths == ["1"])
    with log.open("r+") as file:  # same inode, other contents, longer than before
        file.write(lines("new 1", "new 2", "new 3"))
    until(lambda: store.paths == ["1", "new 1", "new 2", "new 3"])


def test_a_restart_reads_on_where_it_was(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    log.write_text(lines(1, 2))
    follow().close()
    assert store.paths == ["1", "2"]
    append(log, lines(3))
    follow().close()
    assert store.paths == ["1", "2", "3"]


def test_a_restart_after_rotations_reads_the_rotated_files_first(
    log: Path, store: FakeStore, follow: Callable[[], Follower]
) -> None:
    log.write_text(lines(1))
    follow().close()
    append(log, lines(2))
    for i, (text, name) in enumerate([("", "access.log.2"), (lines(3), "access.log.1")]):
        append(log, text)
        log.rename(log.with_name(name))
        os.utime(log.with_name(name), (1000 + i, 1000 + i))
    log.write_text(lines(4))

    follow()
    until(lambda: store.paths == ["1", "2", "3", "4"])
    append(log, lines(5))
    until(lambda: store.paths[-1] == "5")
    assert store.errors.total() == 0


def test_a_restart_after_a_rotation_with_nothing_left_in_the_old_file(
    log: Path, store: FakeStore, follow: Callable[[], Follower]
) -> None:
    log.write_text(lines(1))
    follow().close()
    log.rename(log.with_name("access.log.1"))
    log.write_text(lines(2))

    follow()
    until(lambda: store.paths == ["1", "2"])


def test_a_restart_that_finds_only_another_file_says_what_was_lost(
    log: Path, store: FakeStore, follow: Callable[[], Follower]
) -> None:
    log.write_text(lines(1))
    follow().close()
    log.unlink()
    log.write_text(lines("other"))

    follow()
    until(lambda: store.paths == ["1", "other"])
    assert list(store.errors) == ["rotated away while no collector ran: its last lines were not read"]


def test_bad_lines_are_counted_and_good_ones_between_them_kept(
    log: Path, store: FakeStore, follow: Callable[[], Follower]
) -> None:
    log.write_bytes(b"garbage\n" + line(1).encode() + b"{\n\n   \n\xff\xff\n" + line(2, a="\r\r").encode() + b"{\n")
    follower = follow()
    follower.close()

    assert store.paths == ["1", "2"]
    assert store.errors == {
        "neither JSON nor a default text format of Envoy or Istio": 1,
        "not JSON": 2,
        "not UTF-8": 1,
    }
    assert (follower.status()[0]["lines"], follower.status()[0]["refused"]) == (2, 4)


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 17])
def test_an_endless_line_is_counted_once_and_skipped(
    log: Path, store: FakeStore, follow: Callable[[], Follower], size: int
) -> None:
    log.write_text(line(1) + "x" * size + "\n" + line(2))
    follow()
    until(lambda: store.paths == ["1", "2"])
    assert store.errors == {"line too long": 1}


def test_more_than_one_chunk(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    wanted = [str(n) for n in range(3000)]
    log.write_text("".join(line(n, filler="x" * 1000) for n in wanted))
    follow().close()

    assert store.paths == wanted


def test_what_the_store_did_not_take_is_read_again(
    log: Path, store: FakeStore, follow: Callable[[], Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.witnesses.follow.RETRY_SECONDS", 0.01)
    store.failures = [StoreError("disk full")]
    store.refusals = [StoreFullError("full"), StoreFullError("full"), StoreError("broken")]
    log.write_text(lines(1, 2))
    follower = follow()
    until(lambda: store.paths == ["1", "2"])
    until(lambda: follower.status()[0]["error"] is None)


def test_a_failing_store_shows_in_the_status(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    store.failures = [StoreError("disk full")] * 3
    log.write_text(lines(1))
    follower = follow()
    until(lambda: follower.status()[0]["error"] == "disk full")


def test_status_knows_the_lag_and_the_age(log: Path, store: FakeStore, follow: Callable[[], Follower]) -> None:
    log.write_text(lines(1))
    follower = follow()
    until(lambda: follower.status()[0]["lines"] == 1)
    [status] = follower.status()

    assert status["source"] == str(log)
    assert status["service_name"] == "checkout"
    assert status["direction"] == "inbound"
    assert status["lag_bytes"] == 0
    assert isinstance(status["read_age_seconds"], float)
    assert status["read_age_seconds"] < DEADLINE


def test_several_logs_each_with_its_service(tmp_path: Path, store: FakeStore) -> None:
    logs = [LogFile(tmp_path / f"{name}.log", name) for name in ("a", "b")]
    for log in logs:
        log.path.write_text(lines(log.service_name))
    follower = Follower(logs, store, {}).start()
    follower.close()

    assert sorted(store.paths) == ["a", "b"]
    assert set(store.positions) == {str(log.path) for log in logs}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_follower_shows_in_the_status(log: Path) -> None:
    class Defect:
        def append(self, batches: Mapping[str, pa.RecordBatch]) -> Future[None]:
            raise ZeroDivisionError

    log.write_text(lines(1))
    follower = Follower([LogFile(log, "s")], Defect(), {}).start()
    until(lambda: "died" in str(follower.status()[0]["error"]))
    follower.close()

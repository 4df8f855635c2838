"""The state on disk: whole after every kill, one watch at a time, and never silently forgotten."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from collector.errors import ConfigError
from collector.watch.machine import advance
from collector.watch.model import Marks, State
from collector.watch.statefile import (
    Memory,
    changed_marks,
    dump,
    load,
    marks_path,
    only_watch,
    read_marks,
    read_memory,
    write_text,
)
from tests.collector.watch.watch_rows import START, event, finding, reports


def memory() -> Memory:
    state, events = advance(State(), [finding()], reports(1), START)
    return Memory("http://127.0.0.1:4318", state, {"stdout": tuple(events), "slack": (event(),)})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "watch.json"
    write_text(path, dump(memory()))

    assert read_memory(path, "http://127.0.0.1:4318") == memory()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["watch.json"]


def test_without_a_file_it_begins_anew(tmp_path: Path) -> None:
    assert read_memory(tmp_path / "none.json", "x") == Memory("x", State(), {})


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "watch.json"
    write_text(path, dump(memory()))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"watch.json cannot be written: No space left on device"):
        write_text(path, "half")
    assert load(path.read_text()) == memory()
    assert [p.name for p in tmp_path.iterdir()] == ["watch.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version": 2}', "null", dump(memory()).replace('"phase"', '"fase"'), dump(memory())[:-40]],
)
def test_what_is_no_state_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "watch.json"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"watch.json is no state of `provenance watch` .* move it away to begin anew"
    ):
        read_memory(path, "x")


def test_another_sources_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "watch.json"
    write_text(path, dump(memory()))
    with pytest.raises(ConfigError, match=r"is of a watch of http://127.0.0.1:4318, not of evidence.duckdb"):
        read_memory(path, "evidence.duckdb")


def hold(path: Path, ready: object, done: object) -> None:
    with only_watch(path):
        ready.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


def test_a_second_watch_is_told_who_is_first_and_takes_over_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "watch.json"
    forked = multiprocessing.get_context("fork")
    ready, done = forked.Event(), forked.Event()
    first = forked.Process(target=hold, args=(path, ready, done))
    first.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(ConfigError, match=rf"another watch \(process {first.pid}\) keeps its state in .*watch.json"),
            only_watch(path),
        ):
            pass
    finally:
        first.kill()
        first.join()
    with only_watch(path):
        assert path.with_name("watch.json.lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), only_watch(tmp_path / "file" / "watch.json"):
        pass


def test_marks_are_kept_beside_the_state(tmp_path: Path) -> None:
    path = tmp_path / "watch.json"
    assert read_marks(path) == Marks()
    with changed_marks(path) as (acknowledged, silenced):
        acknowledged["a"] = 1
        silenced["b"] = 2
    with changed_marks(path) as (acknowledged, _):
        acknowledged["c"] = 3
    marks = read_marks(path)
    assert (dict(marks.acknowledged), dict(marks.silenced)) == ({"a": 1, "c": 3}, {"b": 2})


@pytest.mark.parametrize("text", ["", "[]", '{"acknowledged": {"a": "soon"}, "silenced": {}}', '{"silenced": {}}'])
def test_what_are_no_marks_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "watch.json"
    marks_path(path).write_text(text)
    with pytest.raises(ConfigError, match=r"watch.json.marks holds no marks"):
        read_marks(path)


def test_the_state_holds_no_types_of_ours() -> None:
    assert json.loads(dump(memory()))["version"] == 1

"""The command line of `provenance demo`: what is refused before anything starts."""

import argparse

import pytest

from collector.commands.demo import clean_up, duration, incidents, main, parse, prepare
from collector.demo.plan import INCIDENTS
from collector.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("45s", 45.0), ("1.5m", 90.0), ("1h", 3600.0), (" 60s ", 60.0)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "60 s", "-60s", "1d", "5s", "0", "1e3", "nan", "60ss"])
def test_refused_durations(text):
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [("all", INCIDENTS), ("none", ()), ("slow,rogue", ("rogue", "slow")), ("egress, egress", ("egress",))],
)
def test_incidents(text, names):
    assert incidents(text) == names


@pytest.mark.parametrize("text", ["", "rouge", "all,slow", "rogue,"])
def test_refused_incidents(text):
    with pytest.raises(argparse.ArgumentTypeError, match="there are rogue, bypass, egress, slow"):
        incidents(text)


def test_without_a_terminal_it_is_headless():
    assert parse([], terminal=False).headless
    assert not parse([], terminal=True).headless
    assert parse(["--headless"], terminal=True).headless


def test_a_seed_is_drawn_unless_given():
    assert parse(["--seed", "7"], terminal=False).seed == 7
    assert parse([], terminal=False).seed != parse([], terminal=False).seed


@pytest.mark.parametrize(
    "argv", [["--format", "xml"], ["--duration", "3s"], ["--incidents", "x"], ["--no-such"], ["extra"]]
)
def test_usage_errors_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert "usage: provenance demo" in capsys.readouterr().err


def test_a_database_with_content_is_refused_and_left_alone(tmp_path, capsys):
    existing = tmp_path / "evidence.duckdb"
    existing.write_text("precious")
    assert main(["--headless", "--db", str(existing)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert existing.read_text() == "precious"


def test_a_database_in_no_directory_is_refused(tmp_path, capsys):
    assert main(["--headless", "--db", str(tmp_path / "no" / "evidence.duckdb")]) == 2
    assert "no directory" in capsys.readouterr().err


def test_a_directory_is_no_database(tmp_path):
    with pytest.raises(ConfigError):
        prepare(tmp_path)


def test_an_empty_file_makes_room_for_the_database(tmp_path):
    empty = tmp_path / "evidence.duckdb"
    empty.touch()
    folder, database = prepare(empty)
    folder.rmdir()
    assert database == empty
    assert not empty.exists()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_evidence_stays_and_the_rest_only_when_kept(tmp_path, keep, own, capsys):
    folder = tmp_path / "run"
    work = folder / "mesh"
    work.mkdir(parents=True)
    (work / "gateway.log").touch()
    database = (folder if own else tmp_path) / "evidence.duckdb"
    database.write_text("evidence")
    clean_up(folder, work, database, keep=keep)
    assert database.exists()
    assert work.exists() == keep
    assert folder.exists() == (keep or own)
    said = capsys.readouterr().err
    assert str(database) in said
    assert (str(work) in said) == keep

import subprocess
import sys

import pytest

from collector.commands.times import parse_moment
from collector.errors import ConfigError, SourceUnreachableError
from tui import command

HOUR = 3_600 * 1_000_000_000


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(command, "has_terminal", lambda: True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "SOURCE"),
        (["x", "--since", "yesterday"], "is no time"),
        (["x", "--until", "9999-12-31"], "beyond what nanoseconds can say"),
        (["x", "--since", "1h", "--until", "2h"], "not before"),
        (["x", "--policy", "/no/such/file.toml"], "cannot be read"),
        (["x", "--refresh", "0"], "out of range"),
        (["x", "--refresh", "often"], "no number of seconds"),
        (["x", "--refresh", "nan"], "out of range"),
        (["x", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(argv, said, capsys):
    assert command.main(argv) == 2
    assert said in capsys.readouterr().err


def test_without_a_terminal_it_names_the_command_that_prints(capsys):
    assert command.main(["evidence.duckdb"]) == 2
    assert "provenance scan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(SourceUnreachableError("no collector answers at x"), 3), (ConfigError("a bad name"), 2)]
)
def test_a_source_that_cannot_be_opened_is_told_before_the_screen_switches(terminal, monkeypatch, capsys, error, code):
    def refuse(_text, _access):
        raise error

    monkeypatch.setattr("collector.client.open_source", refuse)
    assert command.main(["x"]) == code
    captured = capsys.readouterr()
    assert str(error) in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_a_file_that_is_not_there_is_3(terminal, tmp_path, capsys):
    assert command.main([str(tmp_path / "none.duckdb")]) == 3
    assert "none.duckdb" in capsys.readouterr().err


def test_help_teaches(capsys):
    assert command.main(["--help"]) == 0
    assert "provenance tui http://127.0.0.1:4318 --since 30m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "now", "start", "is_relative"),
    [
        ("15m", HOUR, HOUR * 3 // 4, True),
        ("2h", 5 * HOUR, 3 * HOUR, True),
        ("1970-01-01T02:00:00Z", 99 * HOUR, 2 * HOUR, False),
        ("1970-01-01 02:00", 99 * HOUR, 2 * HOUR, False),
        ("1970-01-01T02:00:00+01:00", 99 * HOUR, HOUR, False),
    ],
)
def test_where_a_window_starts(text, now, start, is_relative):
    since = parse_moment(text)
    assert since.at(now) == start
    assert since.is_relative is is_relative


@pytest.mark.slow
def test_the_command_loads_textual_only_when_it_opens():
    code = "import sys, tui.command; print(sorted({'textual', 'duckdb', 'polars', 'ibis'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The command line's promises: help that teaches, exit codes that scripts can trust, data on stdout and the rest on stderr."""

from pathlib import Path

import pytest

from provenance import cli


def test_help_names_every_command_and_its_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out

    for name in cli.COMMANDS:
        assert f"\n  {name} " in out
    assert "provenance tui evidence.duckdb" in out


def test_no_command_is_a_usage_error_and_prints_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()

    assert captured.out == ""
    assert captured.err == cli.usage()


def test_an_unknown_command_is_named_beside_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scna", "x"]) == 2

    assert (
        "no command 'scna'; there are demo, collect, scan, tui, calls, sql, import, export, verify, keys, version"
        in capsys.readouterr().err
    )


def test_a_missing_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "tui", cli.Command("no_such_package_at_all.command", "tui", "…"))

    assert cli.main(["tui"]) == 2
    assert 'pip install "mesh-provenance[tui]"' in capsys.readouterr().err


def test_a_package_that_is_missing_only_once_the_command_runs_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lazy_command.py").write_text("def main(argv):\n    import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "collect", cli.Command("lazy_command", "collector", "…"))

    assert cli.main(["collect"]) == 2
    assert 'pip install "mesh-provenance[collector]"' in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_answers_help_with_exit_code_zero(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: str | int | None = cli.main([name, "--help"])
    except SystemExit as stopped:  # argparse ends the process itself
        code = stopped.code

    assert code == 0
    assert f"usage: provenance {name}" in capsys.readouterr().out


def test_version_names_the_packages_of_a_bug_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    out = capsys.readouterr().out

    assert out.startswith("mesh-provenance 0.")
    assert "\nduckdb " in out
    assert "\npython 3." in out


def test_a_defect_does_not_look_like_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_argv: object) -> int:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("provenance.version.main", broken)

    assert cli.main(["version"]) == 70
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Traceback")
    assert "ZeroDivisionError: by zero" in captured.err
    assert "a defect of ours" in captured.err

"""What a file may take of the memory: by flag, variable or default; more is spilled beside it, and where that fails the error says what to do."""

import argparse
from pathlib import Path

import pytest

from collector.access import LEAST_MEMORY_BYTES, Access, add_access_arguments
from collector.client import FileSource, open_source
from collector.commands import calls, cost, egress, export, rank, scan, sql, verify, watch
from collector.errors import ConfigError, QueryError
from collector.store import machine
from collector.store.database import Store
from tui import command as tui

MIB = 1024**2

# A million groups: 90 MB of hash table, which can be spilled.
MANY_GROUPS = (
    "SELECT max(b)::BIGINT AS most, count(*) AS n FROM "
    "(SELECT i % 1000000 AS a, count(*) AS b FROM range(2000000) t(i) GROUP BY a)"
)
# One value of 200 MB, which cannot.
ONE_TEXT = "SELECT length(string_agg(x, '')) AS n FROM (SELECT repeat('x', 1000) || i AS x FROM range(200000) t(i))"


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.duckdb"
    Store.open(path).close()
    return path


def limit(source: FileSource) -> str:
    return str(source.query("SELECT current_setting('memory_limit') AS m")["m"][0])


def test_a_question_that_needs_more_is_spilled_beside_the_file(evidence: Path) -> None:
    source = FileSource(str(evidence), memory_bytes=LEAST_MEMORY_BYTES)
    assert source.query(MANY_GROUPS).row(0) == (2, 1_000_000)
    source.close()

    # Where nothing can be spilled, the same question fails: so it was spilled, and there.
    evidence.with_name("evidence.duckdb.tmp").write_text("in the way")
    source = FileSource(str(evidence), memory_bytes=LEAST_MEMORY_BYTES)
    with pytest.raises(
        QueryError, match=r"takes more than the 64MiB .* into evidence\.duckdb\.tmp: .*--memory or PROVENANCE_MEMORY"
    ):
        source.query(MANY_GROUPS)
    source.close()
    source = FileSource(str(evidence), memory_bytes=1024 * MIB)
    assert source.query(MANY_GROUPS).row(0) == (2, 1_000_000)
    source.close()


def test_what_cannot_be_spilled_fails_with_what_to_do(evidence: Path) -> None:
    source = FileSource(str(evidence), memory_bytes=LEAST_MEMORY_BYTES)
    with pytest.raises(
        QueryError,
        match=r"evidence\.duckdb: the question takes more than the 64MiB .*--since, --until\)\. DuckDB says: ",
    ):
        source.query(ONE_TEXT)
    with pytest.raises(QueryError, match=r"^(?!.*--memory)"):
        source.query("SELECT nothing FROM spans")
    source.close()


def test_the_variable_stands_in_for_the_flag(evidence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVENANCE_MEMORY", "96MiB")
    source = open_source(str(evidence))
    assert isinstance(source, FileSource)
    assert limit(source) == "96.0 MiB"
    source.close()
    source = open_source(str(evidence), Access(memory_bytes=200 * MIB))
    assert isinstance(source, FileSource)
    assert limit(source) == "200.0 MiB"
    source.close()


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_access_arguments(parser)
    return parser.parse_args(argv)


def test_the_flag_beats_the_variable() -> None:
    environ = {"PROVENANCE_MEMORY": "2GiB"}
    assert Access.of(parsed(), {}).memory_bytes is None
    assert Access.of(parsed(), {"PROVENANCE_MEMORY": ""}).memory_bytes is None
    assert Access.of(parsed(), environ).memory_bytes == 2048 * MIB
    assert Access.of(parsed("--memory", "500MB"), environ).memory_bytes == 500_000_000


@pytest.mark.parametrize("text", ["63MiB", "much", "2G", "-1GiB"])
def test_sizes_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"PROVENANCE_MEMORY=.*64MiB or more"):
        Access.of(parsed(), {"PROVENANCE_MEMORY": text})
    with pytest.raises(SystemExit):
        parsed(f"--memory={text}")
    assert "expected a size of 64MiB or more, such as 2GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [calls, cost, egress, export, rank, scan, sql, tui, verify, watch], ids=lambda c: c.__name__
)
def test_every_command_that_reads_a_file_says_a_wrong_variable_and_takes_the_flag(
    command: object, evidence: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tui, "has_terminal", lambda: True)
    main = command.main  # type: ignore[attr-defined]
    more = {
        export: ["--format", "otlp-json"],
        sql: ["SELECT 1"],
        rank: ["--incident", "2m..1m", "--baseline", "9m..8m"],
    }.get(command, [])  # type: ignore[call-overload]
    monkeypatch.setenv("PROVENANCE_MEMORY", "none")
    assert main([str(evidence), *more]) == 2
    assert "PROVENANCE_MEMORY=none: expected a size" in capsys.readouterr().err
    try:
        code = main([str(evidence), *more, "--memory", "none"])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "argument --memory" in capsys.readouterr().err


# --- how much there is --------------------------------------------------------------------------------------------


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_control_groups_has_all_of_its_memory(tmp_path: Path) -> None:
    assert (
        machine.memory_bytes(tmp_path) == machine.memory_bytes(files(tmp_path, proc__self__cgroup="0::/\n")) > 64 * MIB
    )


def test_a_containers_limit_is_all_there_is(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="0::/kubepods/pod7\n", sys__fs__cgroup__memory_dot_max="134217728\n")
    assert machine.memory_bytes(tmp_path) == 128 * MIB  # the path is the host's: its own group is at the top
    files(tmp_path, sys__fs__cgroup__kubepods__pod7__memory_dot_max="max\n")
    assert machine.memory_bytes(tmp_path) == 128 * MIB
    files(tmp_path, sys__fs__cgroup__kubepods__pod7__memory_dot_max="67108864\n")
    assert machine.memory_bytes(tmp_path) == 64 * MIB


def test_the_older_control_groups_too(tmp_path: Path) -> None:
    files(
        tmp_path,
        proc__self__cgroup="12:cpu,cpuacct:/a\n9:memory:/a\n0::/\n",
        sys__fs__cgroup__memory__a__memory_dot_limit_in_bytes="100000000\n",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="9223372036854771712\n",
    )
    assert machine.memory_bytes(tmp_path) == 100_000_000


def test_without_a_setting_a_file_gets_half_of_what_there_is_and_four_gigabytes_at_most(
    evidence: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROVENANCE_MEMORY", raising=False)
    for there_is, expected in ((512 * MIB, "256.0 MiB"), (64 * 1024 * MIB, "4.0 GiB")):
        monkeypatch.setattr(machine, "memory_bytes", lambda there_is=there_is: there_is)
        source = open_source(str(evidence))
        assert isinstance(source, FileSource)
        assert limit(source) == expected
        source.close()

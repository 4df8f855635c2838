"""`provenance calls`: what it prints, where, and what it exits with."""

import json
from pathlib import Path

import pytest

from collector.commands.calls import main
from collector.forensics.call_list import SCHEMA
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.forensics.factories import T0, S, make_proxy_record, make_span, to_arrow


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A minute of `web` calling `pay`, once past pay's proxy."""
    spans, records = [], []
    for n in range(13):
        at = {"start_time_unix_nano": T0 + n * 5 * S}
        ids = {"trace_id": n + 1, "provenance_request_id": f"request-{n}", "url_path": "/"}
        spans += [
            make_span(span_id=1, kind="CLIENT", service_name="web", **ids, **at),
            make_span(span_id=2, parent_span_id=1, service_name="pay", **ids, **at),
        ]
        line = {"request_id": f"request-{n}", **at}
        records.append(make_proxy_record(service_name="web", direction="outbound", record_id=100 + n, **line))
        if n != 6:
            records.append(make_proxy_record(service_name="pay", record_id=n + 1, **line))
    path = tmp_path_factory.mktemp("calls") / "evidence.duckdb"
    with Store.open(path) as opened, Writer(opened) as writer:
        batches = {"spans": to_arrow("spans", spans), "proxy_records": to_arrow("proxy_records", records)}
        writer.append({table: rows.to_batches()[0] for table, rows in batches.items()}).result(30)
    return str(path)


def test_one_row_a_call_and_the_sum_on_stderr(evidence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([evidence, "--format", "ndjson"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [set(row) for row in rows] == [set(SCHEMA)] * 13
    assert [row["verdict"] for row in rows].count("meshed") == 12
    assert (rows[6]["verdict"], rows[6]["side"], rows[6]["trace_id"]) == ("bypassed", "server", f"{7:032x}")
    assert err.startswith("provenance calls: 13 calls: 1 bypassed, 12 meshed")


def test_one_trace_and_what_is_clean_exits_0(evidence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([evidence, "--trace", f"{3:032x}"]) == 0
    out, _ = capsys.readouterr()
    [header, _, row] = out.splitlines()
    assert header.split()[:2] == ["time", "verdict"]
    assert row.startswith("2026-09-21T14:13:30.000Z  meshed")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--trace", "xyz"], 2, "'xyz' is no trace id: expected 32 hexadecimal digits"),
        (["--since", "5m", "--until", "10m"], 2, "is not before"),
    ],
)
def test_bad_arguments_are_named(
    evidence: str, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([evidence, *arguments]) == code
    out, err = capsys.readouterr()
    assert (out, says in err) == ("", True)


def test_nothing_there_to_ask_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.duckdb")]) == 3
    assert "none.duckdb" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("meshed", "bypassed", "unknown", "excluded_port", "--verdict", "exit codes"))

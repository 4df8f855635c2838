"""`provenance rank` and `provenance cost` as they are typed: what they print, and what they say of bad input."""

import json

import pytest

from collector.commands import cost, rank
from collector.commands.times import parse_range
from collector.errors import ConfigError
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.forensics.factories import MS, T0, S, make_span, to_arrow

MINUTE = 60 * S

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """A minute in which `shop` answers in 10 ms through `stock`, and one in which stock takes 200 ms longer."""
    spans = []
    for number in range(120):
        extra = 200 * MS if number >= 60 else 0
        start, trace = T0 + number * S, number + 1
        shape = (("shop", "SERVER", 10), ("shop", "CLIENT", 8), ("stock", "SERVER", 5))
        for depth, (service, kind, ms) in enumerate(shape):
            spans.append(
                make_span(
                    trace_id=trace, span_id=10 * number + depth + 1, parent_span_id=10 * number + depth if depth else None,
                    service_name=service, name="GET /", kind=kind, start_time_unix_nano=start, duration_ns=ms * MS + extra,
                    service_instance_id=f"{service}-1", attributes={"version": "2" if extra else "1"},
                )
            )  # fmt: skip
    path = tmp_path_factory.mktemp("rank") / "evidence.duckdb"
    store = Store.open(path)
    writer = Writer(store)
    for batch in to_arrow("spans", spans).to_batches():
        writer.append({"spans": batch}).result(30)
    writer.close()
    store.close()
    return str(path)


WINDOWS = ("--incident", f"{T0 + MINUTE}..{T0 + 2 * MINUTE}", "--baseline", f"{T0}..{T0 + MINUTE}")


def told(capsys, command, *argv):
    code = command.main(argv, now=lambda: T0 + 2 * MINUTE)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_ranking_as_json(capsys, evidence):
    code, out, err = told(capsys, rank, evidence, *WINDOWS, "--format", "json")
    assert (code, err) == (0, "")
    first, second = json.loads(out)
    assert list(first) == ["service", "score", "share", "reason"]
    assert (first["service"], second["service"]) == ("stock", "shop")
    assert first["score"] > second["score"]
    assert first["share"] == pytest.approx(1, abs=0.01)
    assert first["reason"] == "GET / itself takes 205 ms instead of 5 ms a call (60 calls)"


def test_a_baseline_that_overlaps_the_incident_is_told(capsys, evidence):
    overlapping = ("--incident", f"{T0 + MINUTE}..{T0 + 2 * MINUTE}", "--baseline", f"{T0}..{T0 + MINUTE + 1}")
    code, _, err = told(capsys, rank, evidence, *overlapping)
    assert code == 0
    assert "the baseline overlaps the incident" in err


def test_relative_windows_and_no_baseline_are_the_same(capsys, evidence):
    _, named, _ = told(capsys, rank, evidence, *WINDOWS, "--format", "json")
    _, relative, _ = told(capsys, rank, evidence, "--incident", "60s..0s", "--format", "json")
    assert json.loads(relative) == json.loads(named)


@pytest.mark.parametrize(("by", "key", "value"), [("pod", "pod", "stock-1"), ("operation", "operation", "GET /")])
def test_by_pod_and_operation(capsys, evidence, by, key, value):
    _, out, _ = told(capsys, rank, evidence, *WINDOWS, "--by", by, "--format", "ndjson")
    first = json.loads(out.splitlines()[0])
    assert (first["service"], first[key]) == ("stock", value)


def test_a_table(capsys, evidence):
    _, out, _ = told(capsys, rank, evidence, *WINDOWS)
    heading, first, said, *_ = out.splitlines()
    assert heading.split() == ["SCORE", "SHARE", "CANDIDATE"]
    assert first.split()[-1] == "stock"
    assert said.strip().startswith("GET / itself takes 205 ms")


def test_attributes(capsys, evidence):
    code, out, _ = told(capsys, rank, evidence, *WINDOWS, "--attributes", "--format", "json")
    assert code == 0
    assert [(r["key"], r["value"], r["slow_ratio"]) for r in json.loads(out)] == [("version", "2", 1.0)] * 2


def test_a_part_of_the_traces_is_said(capsys, evidence):
    code, _, err = told(capsys, rank, evidence, *WINDOWS, "--spans", "30")
    assert (code, "% of the baseline's traces are compared" in err) in {(0, True), (2, True), (2, False)}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--incident", "yesterday"), "--incident: 'yesterday' is no window: write START..END"),
        (("--incident", "1h..2h"), "is an empty window"),
        (("--incident", "1790000000..1790000060"), "'1790000000' is no time"),
        (("--incident", "60s..0s", "--baseline", ".."), "--baseline: '..' is no window"),
        (("--incident", "60s..0s", "--baseline", "9d..8d"), "no trace begins in the baseline"),
        (("--incident", "2026-01-01T00:00:00Z..2026-01-01T01:00:00Z"), "no trace begins in the "),
    ],
)
def test_windows_that_cannot_be(capsys, evidence, argv, said):
    code, out, err = told(capsys, rank, evidence, *argv)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("command", [rank, cost])
def test_nothing_there(capsys, tmp_path, command):
    windows = WINDOWS if command is rank else ()
    code, out, err = told(capsys, command, str(tmp_path / "none.duckdb"), *windows)
    assert (code, out) == (3, "")
    assert "none.duckdb" in err


def test_ranges():
    assert parse_range("1790000000000000000..1790000000000000001", 0) == (T0, T0 + 1)
    assert parse_range(" 2026-09-21T14:13:20Z .. 2026-09-21T14:13:21Z ", 0) == (T0, T0 + S)
    with pytest.raises(ConfigError, match="beyond what nanoseconds can say"):
        parse_range("1790000000000000000..9999999999999999999", 0)


def test_cost(capsys, evidence):
    code, out, err = told(capsys, cost, evidence, "--by", "edge", "--format", "json")
    (row,) = json.loads(out)
    assert (code, row["caller"], row["callee"], row["calls"]) == (0, "shop", "stock", 120)
    assert row["hop_ns_p50"] == 3 * MS
    assert row["network_ns_p50"] is None
    assert "no hop has spans of proxies" in err


def test_cost_as_a_table_and_of_nothing(capsys, evidence):
    _, out, _ = told(capsys, cost, evidence)
    assert "3 ms" in out.splitlines()[-1]
    code, _, err = told(capsys, cost, evidence, "--until", "9d")
    assert code == 0
    assert "nothing tells what a hop costs" in err
    assert told(capsys, cost, evidence, "--since", "1m", "--until", "2m")[0] == 2

"""OTLP in files: every form that the Collector's file exporter writes, compressed, cut and damaged."""

import gzip
import io
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.errors import ConfigError
from collector.exchange import jaeger, otlp_files, sniff, zipkin
from collector.exchange.exporting import framed, json_line
from collector.exchange.streams import Stream
from collector.otlp.synthetic import trace_request
from tests.collector.exchange.exchange_helpers import rows, run_import

REQUESTS = [trace_request(10, seed=seed) for seed in range(3)]
LINES = b"".join(json_line(r) for r in REQUESTS)
TWO_LINES = b"".join(json_line(r) for r in REQUESTS[:2])
FRAMED = b"".join(framed(r) for r in REQUESTS)


def message(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def documents() -> list[object]:
    return [json.loads(line) for line in LINES.splitlines()]


FILES = {
    "lines": LINES,
    "lines without a last newline": LINES.rstrip(b"\n"),
    "lines, blank ones between, CRLF": LINES.replace(b"\n", b"\r\n\r\n"),
    "byte order mark": b"\xef\xbb\xbf" + LINES,
    "pretty": b"\n".join(json.dumps(d, indent=2).encode() for d in documents()),
    "list": json.dumps(documents()).encode(),
    "pretty list": json.dumps(documents(), indent=4).encode(),
    "one document": json.dumps({"resourceSpans": [r for d in documents() for r in d["resourceSpans"]]}).encode(),  # type: ignore[index]
    "other keys first": b"".join(b'{"x": [{"y": 1}],' + line[1:] + b"\n" for line in LINES.splitlines()),
    "framed": FRAMED,
    "framed, each zstd": b"".join(message(zstd.compress(r.SerializeToString())) for r in REQUESTS),
    "framed, each zstd, JSON": b"".join(message(zstd.compress(json_line(r).strip())) for r in REQUESTS),
    "framed, an empty one first": b"\0\0\0\0" + FRAMED,
    "whole": b"".join(r.SerializeToString() for r in REQUESTS),
}
WRAPPED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip of two members": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    "zstd": zstd.compress,
    "zstd of two frames": lambda data: zstd.compress(data[:5000]) + zstd.compress(data[5000:]),
}


def import_bytes(tmp_path: Path, data: bytes, *options: str) -> tuple[int, Path]:
    (tmp_path / "file").write_bytes(data)
    return run_import(tmp_path / "file", "--into", tmp_path / "db.duckdb", *options), tmp_path / "db.duckdb"


def count(db: Path) -> int:
    [row] = rows(db, "SELECT count(*) AS n, count(DISTINCT span_id) AS ids FROM spans")
    assert row["n"] == row["ids"]
    n: int = row["n"]
    return n


@pytest.mark.parametrize("form", FILES)
def test_every_form_is_recognised_and_read(tmp_path: Path, form: str) -> None:
    code, db = import_bytes(tmp_path, FILES[form])
    assert (code, count(db)) == (0, 30)
    assert rows(db, "SELECT * FROM ingest_errors") == []


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("form", ["lines", "pretty list", "framed", "whole"])
def test_records_do_not_depend_on_compression(form: str, wrapping: str) -> None:
    stream = Stream("x", io.BytesIO(WRAPPED[wrapping](FILES[form])))
    shape = sniff.sniff("x", stream.peek_line(sniff.HEAD_BYTES, sniff.MAX_MESSAGE_BYTES))
    assert shape is not None
    readers = {
        "lines": otlp_files.read_lines,
        "document": otlp_files.read_documents,
        "framed": otlp_files.read_framed,
        "whole": otlp_files.read_whole,
    }
    payload = b"".join(record.request for record in readers[shape.framing](stream))  # type: ignore[union-attr]

    assert stream.cut is None
    merged = ExportTraceServiceRequest.FromString(payload)
    assert [s for r in merged.resource_spans for s in r.scope_spans[0].spans] == [
        s for r in REQUESTS for s in r.resource_spans[0].scope_spans[0].spans
    ]


def test_bad_lines_are_counted_with_their_place_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = LINES.splitlines(keepends=True)
    code, db = import_bytes(tmp_path, first + b"not json\n" + second + b'{"resourceSpans": 7}\n' + third)

    assert (code, count(db)) == (0, 30)
    reasons = [row["reason"] for row in rows(db, "SELECT reason FROM ingest_errors ORDER BY reason")]
    assert len(reasons) == 2
    assert any("first at line 2" in r for r in reasons)
    assert any("first at line 4" in r for r in reasons)
    assert "1 skipped: line: " in capsys.readouterr().err


def test_a_span_with_a_bad_id_is_refused_alone(tmp_path: Path) -> None:
    document = json.loads(LINES.splitlines()[0])
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][4]["spanId"] = "00"
    code, db = import_bytes(tmp_path, json.dumps(document).encode())

    assert (code, count(db)) == (0, 9)
    assert rows(db, "SELECT reason, count FROM ingest_errors") == [
        {"reason": "span: span_id is not 8 bytes", "count": 1}
    ]


@pytest.mark.parametrize(
    ("data", "spans"),
    [
        (LINES[: len(LINES) * 5 // 6], 20),
        (FRAMED[:-5], 20),
        (FRAMED + b"\0\0", 30),
        (gzip.compress(LINES, mtime=0)[:-3], 30),
        (zstd.compress(TWO_LINES) + zstd.compress(LINES[len(TWO_LINES) :])[:-1], 20),
        (gzip.compress(LINES[:-1000], mtime=0) + b"garbage", 20),
    ],
    ids=["a line", "a message", "a length", "gzip's end", "zstd's end", "garbage after gzip"],
)
def test_what_came_before_a_cut_is_kept(tmp_path: Path, data: bytes, spans: int) -> None:
    code, db = import_bytes(tmp_path, data)
    assert (code, count(db)) == (0, spans)
    assert rows(db, "SELECT sum(count) > 0 AS told FROM ingest_errors") == [{"told": True}]


def test_a_message_that_is_cut_inside_does_not_swallow_the_next(tmp_path: Path) -> None:
    first, second, third = (r.SerializeToString() for r in REQUESTS)
    code, db = import_bytes(tmp_path, message(first) + message(second[:-7]) + message(third))

    assert (code, count(db)) == (0, 20)
    [error] = rows(db, "SELECT reason FROM ingest_errors")
    assert "first at message 2" in error["reason"]


def test_a_second_import_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_bytes(tmp_path, LINES + LINES.splitlines(keepends=True)[0])
    assert "30 spans from 1 source (otlp-json)" in capsys.readouterr().err
    code, db = import_bytes(tmp_path, FRAMED)

    assert (code, count(db)) == (0, 30)
    told = capsys.readouterr().err
    assert "0 spans from 1 source (otlp-proto)" in told
    assert "30 were there already" in told


def test_stdin_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(LINES))))
    assert run_import("-", "--into", tmp_path / "db.duckdb") == 0
    assert count(tmp_path / "db.duckdb") == 30


def test_nothing_to_import_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, db = import_bytes(tmp_path, b"")
    assert (code, count(db)) == (0, 0)
    assert "file: empty" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"{}\n", b"[]", b'{"data": []}', b'{"resourceSpans": []}', b"\0\0\0\0"])
def test_empty_documents_are_no_error(tmp_path: Path, data: bytes) -> None:
    assert import_bytes(tmp_path, data)[0] == 0


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"hello world", "b'hello world'"),
        (b"time,span\n1,2\n", "it begins with"),
        (b'{"resourceLogs": []}', "it is JSON with the keys resourceLogs"),
        (b'{"level": "info", "msg": "x"}', "it is JSON with the keys level, msg"),
        (b"\x89PNG\r\n", "it begins with"),
    ],
)
def test_a_file_that_is_none_of_these_names_itself_and_what_was_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, seen: str
) -> None:
    code, db = import_bytes(tmp_path, data)

    error = capsys.readouterr().err
    assert code == 2
    assert str(tmp_path / "file") in error
    assert seen in error
    assert "--format otlp-json|otlp-proto|jaeger|zipkin|parquet" in error
    assert not db.exists()


def test_a_format_that_the_content_contradicts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_bytes(tmp_path, LINES, "--format", "jaeger")[0] == 2
    assert "--format jaeger, but it looks like otlp-json" in capsys.readouterr().err


def test_a_file_that_is_damaged_at_its_start_is_read_when_its_format_is_named(tmp_path: Path) -> None:
    code, db = import_bytes(tmp_path, b"\xff\xfe oops\n" + LINES, "--format", "otlp-json")
    assert (code, count(db)) == (0, 30)


def test_a_wrong_file_among_several_is_found_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(LINES)
    (tmp_path / "bad").write_bytes(b"?")
    assert run_import(tmp_path / "good", tmp_path / "bad", "--into", tmp_path / "db.duckdb") == 2
    assert not (tmp_path / "db.duckdb").exists()


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_import(tmp_path / "nosuch", "--into", tmp_path / "db.duckdb") == 2
    assert "nosuch cannot be read: No such file" in capsys.readouterr().err


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300) | st.text(max_size=200).map(str.encode),
    st.sampled_from(
        [b"", b"[", b"{", b'{"resourceSpans":[', b'{"data":[{"spans":[{', b'[{"traceId":"1",', b"\0\0\0\5"]
    ),
)
def test_readers_take_any_bytes(data: bytes, head: bytes) -> None:
    readers = [
        otlp_files.read_lines,
        otlp_files.read_documents,
        otlp_files.read_framed,
        otlp_files.read_whole,
        jaeger.read_jaeger,
        zipkin.read_zipkin,
    ]
    for read in readers:
        for wrap in (bytes, gzip.compress):
            list(read(Stream("x", io.BytesIO(wrap(head + data)))))
    with suppress(ConfigError):
        sniff.sniff("x", head + data)


def test_a_document_comes_in_pieces_of_any_size() -> None:
    class Dripping(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            return super().read(7)

    for form in ("pretty", "list", "pretty list", "one document"):
        records = list(otlp_files.read_documents(Stream("x", Dripping(FILES[form]))))
        assert len(records) == 3

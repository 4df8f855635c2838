"""Whatever a request says comes back: store → export → import → the same tables."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import schema
from collector.exchange import exporting, pages
from collector.otlp.synthetic import trace_request
from tests.collector.exchange.exchange_helpers import (
    append,
    append_request,
    rows,
    run_export,
    run_import,
    span_tables,
    table,
)
from tests.collector.otlp.test_decode_properties import requests
from tests.collector.store.evidence_rows import make_batch

FORMATS = [("otlp-json", "out.jsonl"), ("otlp-proto", "out.pb"), ("parquet", "out")]


def distinct_spans(request):
    """The request without spans whose id is there already: a store has each once."""
    seen = set()
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            kept = []
            for span in scope_spans.spans:
                if (span.trace_id, span.span_id) not in seen:
                    seen.add((span.trace_id, span.span_id))
                    kept.append(span)
            del scope_spans.spans[:]
            scope_spans.spans.extend(kept)
    return request


@pytest.mark.slow
@settings(
    max_examples=6,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # which traces every line that runs: ten times the time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(several=st.lists(requests, min_size=1, max_size=5), compressed=st.sampled_from(["", ".gz", ".zst"]))
def test_every_format_brings_back_what_requests_said(several, compressed):
    request = ExportTraceServiceRequest()
    for one_of_them in several:
        request.MergeFrom(one_of_them)
    directory = Path(tempfile.mkdtemp())
    one = directory / "one.duckdb"
    try:
        append_request(one, distinct_spans(request).SerializeToString())
        for format_, out in FORMATS:
            path = directory / (out + (compressed if format_ != "parquet" else ""))
            assert run_export(one, "--format", format_, "--out", path) == 0
            other = directory / f"{format_}.duckdb"
            assert run_import(path, "--into", other) == 0
            is_ours = format_ == "parquet"
            assert span_tables(other, received_too=is_ours) == span_tables(one, received_too=is_ours)
    finally:
        shutil.rmtree(directory)


def test_parquet_brings_back_every_table(tmp_path: Path) -> None:
    one, other = tmp_path / "one.duckdb", tmp_path / "other.duckdb"
    append(one, {name: make_batch(name) for name in schema.TABLES})

    assert run_export(one, "--format", "parquet", "--out", tmp_path / "out") == 0
    assert run_import(tmp_path / "out", "--into", other) == 0

    for name in schema.TABLES:
        # An event needs its span: rows made apart from each other have none.
        expected = [] if name in {"span_events", "span_links"} and not _has_span(one, name) else table(one, name)
        assert table(other, name) == expected
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{name}.parquet" for name in schema.TABLES)


def _has_span(path: Path, name: str) -> bool:
    return bool(rows(path, f"SELECT 1 FROM {name} SEMI JOIN spans USING (trace_id, span_id)"))


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "out"), FORMATS)
@pytest.mark.parametrize("received", ["at once", "one after another"])
def test_small_pages_have_every_span_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, out: str, received: str
) -> None:
    monkeypatch.setattr(pages.plan_pages, "__kwdefaults__", {"page_rows": 7})
    one, other = tmp_path / "one.duckdb", tmp_path / "other.duckdb"
    for seed in range(6):
        request = trace_request(20, seed=seed)
        for span in request.resource_spans[0].scope_spans[0].spans[::3]:
            span.events.add(name="retry", time_unix_nano=seed)
            span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)
        append_request(one, request.SerializeToString(), 5 if received == "at once" else 5 + 10**seed)

    assert run_export(one, "--format", format_, "--out", tmp_path / out) == 0
    assert run_import(tmp_path / out, "--into", other) == 0

    assert len(table(other, "span_events")) == 6 * 7
    is_ours = format_ == "parquet"
    assert span_tables(other, received_too=is_ours) == span_tables(one, received_too=is_ours)


def test_a_page_that_is_refused_comes_in_parts(tmp_path: Path) -> None:
    from collector.client import FileSource
    from collector.errors import QueryError

    path = tmp_path / "one.duckdb"
    append_request(path, trace_request(300).SerializeToString())
    source = FileSource(str(path))
    asked = []

    def query(sql: str):
        frame = source.query(sql)
        asked.append(frame.height)
        if sql.startswith("SELECT * FROM spans") and frame.height > 50:
            raise QueryError("the answer has more than 50 rows")
        return frame

    written: list[bytes] = []
    exported = exporting.export_otlp(query, pages.Scope(), exporting.framed, _Collecting(written))
    source.close()

    assert exported.rows["spans"] == 300
    assert len(written) > 6
    assert 300 in asked


def test_a_query_that_fails_for_another_reason_is_no_endless_search(tmp_path: Path) -> None:
    from collector.client import FileSource
    from collector.errors import QueryError

    path = tmp_path / "one.duckdb"
    append_request(path, trace_request(300).SerializeToString())
    source = FileSource(str(path))
    failures = 0

    def query(sql: str):
        nonlocal failures
        if sql.startswith("SELECT * FROM spans"):
            failures += 1
            raise QueryError("the disk is on fire")
        return source.query(sql)

    with pytest.raises(QueryError, match="on fire"):
        exporting.export_otlp(query, pages.Scope(), exporting.framed, _Collecting([]))
    source.close()
    assert failures < 10


class _Collecting:
    def __init__(self, written: list[bytes]) -> None:
        self._written = written

    def write(self, data: bytes, /) -> None:
        self._written.append(data)

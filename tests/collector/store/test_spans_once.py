"""A span that is sent twice is stored once, with its events and links; a different span with the same ids is stored too."""

from pathlib import Path

import numpy as np
import pytest

from collector.otlp import decode_traces
from collector.otlp.synthetic import attribute, trace_request
from collector.store.database import Store
from collector.store.recent import Recent, span_hashes
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row

DEADLINE = 20


def request_batches(seed, *, received=1, spans=8):
    """Spans with an event and a link each; of the first, the event comes twice."""
    request = trace_request(spans, seed=seed)
    for number, span in enumerate(request.resource_spans[0].scope_spans[0].spans):
        span.events.add(name="retry", time_unix_nano=5, attributes=[attribute("n", number)])
        span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    return decode_traces(request.SerializeToString(), received_unix_nano=received).batches


def counts(path):
    with Store.open_read_only(path) as store:
        cursor = store.cursor()
        return tuple(
            cursor.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for table in ("spans", "span_events", "span_links")
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evidence.duckdb"


def store_all(path, *requests, together=False, **options):
    with Store.open(path) as store, Writer(store, **options) as writer:
        futures = []
        for batches in requests:
            futures.append(writer.append(batches))
            if not together:
                futures[-1].result(DEADLINE)
        for future in futures:
            future.result(DEADLINE)


@pytest.mark.parametrize("together", [True, False])
def test_a_request_that_comes_again_changes_nothing(path, together):
    store_all(path, request_batches(1), request_batches(2), request_batches(1, received=9), together=together)
    assert counts(path) == (16, 16, 16)


def test_a_request_that_comes_again_after_a_restart_changes_nothing(path):
    store_all(path, request_batches(1))
    store_all(path, request_batches(1, received=9), request_batches(2))
    assert counts(path) == (16, 16, 16)


def test_a_request_that_is_a_part_of_an_earlier_one_adds_only_what_is_new(path):
    store_all(path, request_batches(1, spans=5), request_batches(1, spans=8))
    assert counts(path) == (8, 8, 8)


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "SERVER"},
        {"start_time_unix_nano": 77},
        {"end_time_unix_nano": 77},
        {"resource_id": 77},
        {"span_id": 77},
    ],
)
def test_the_same_id_does_not_keep_another_span_out(path, other):
    """Zipkin's client and server share an id; and nobody may keep a span out by guessing its id."""
    row = make_row("spans", kind="CLIENT")
    store_all(path, {"spans": make_batch("spans", row)}, {"spans": make_batch("spans", row | other)})
    assert counts(path)[0] == 2


def test_an_import_looks_at_the_whole_file(path, monkeypatch):
    monkeypatch.setattr("collector.store.insert._SEEDED", 1)
    store_all(path, request_batches(1), request_batches(2))
    store_all(path, request_batches(1), ask_always=True)
    assert counts(path) == (16, 16, 16)


def test_a_request_that_failed_and_comes_again_is_stored(path):
    """What is remembered of a transaction that was rolled back must not keep its spans out."""
    good, bad = make_row("spans"), make_row("spans") | {"name": None}
    with Store.open(path) as store, Writer(store) as writer:
        failed = writer.append({"spans": make_batch("spans", good, bad)})
        assert failed.exception(DEADLINE) is not None
        writer.append({"spans": make_batch("spans", good)}).result(DEADLINE)
    assert counts(path)[0] == 1


# --- the filter -----------------------------------------------------------------------------------------------------------


def test_the_filter_never_misses_one_of_the_last_spans():
    random = np.random.default_rng(1)
    recent = Recent(capacity=1 << 12)
    hashes = random.integers(0, 2**64, 10 * (1 << 12), dtype=np.uint64)
    for group in np.array_split(hashes, 97):
        recent.add(group, 1)
    assert recent.maybe_known(hashes[-(1 << 12) :]).all()


def test_the_filter_seldom_takes_a_new_span_for_a_known_one():
    random = np.random.default_rng(2)
    recent = Recent(capacity=1 << 14)
    for _ in range(16):
        recent.add(random.integers(0, 2**64, 1 << 11, dtype=np.uint64), 1)
    strangers = random.integers(0, 2**64, 1 << 20, dtype=np.uint64)
    assert recent.maybe_known(strangers).mean() < 1e-5


def test_the_filter_knows_how_far_back_to_look():
    recent = Recent(capacity=4)
    assert recent.since is None
    for received in (7, 5, 9, 11):
        recent.add(np.arange(4, dtype=np.uint64), received)
    assert recent.since == 9, "two generations of one group each"


def test_equal_spans_have_equal_hashes_wherever_they_stand_in_a_batch():
    spans = request_batches(3)["spans"]
    assert len(set(span_hashes(spans).tolist())) == 8
    assert span_hashes(spans.slice(3, 2)).tolist() == span_hashes(spans)[3:5].tolist()

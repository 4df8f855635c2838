"""A request in two: what goes with which half, and that whoever stored one half alone may write the whole again."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.insert import Batches
from collector.store.journal import Position
from collector.store.split import span_count, split
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "evidence.duckdb") as opened:
        yield opened


def part_of(first: int, spans: int) -> Batches:
    """Spans with ids from `first` on, the odd ones with two events, and rows of tables that know no spans."""
    ids = range(first, first + spans)
    part = {
        "spans": [make_row("spans", trace_id=UUID(int=n), span_id=n, resource_id=1) for n in ids],
        "span_events": [make_row("span_events", trace_id=UUID(int=n), span_id=n) for n in ids for _ in "ab" if n % 2],
        "resources": [make_row("resources", resource_id=1)],
        "ingest_errors": [make_row("ingest_errors")],
    }
    return {table: make_batch(table, *rows) for table, rows in part.items() if rows}


def rows_of(parts: list[Batches], table: str) -> list[dict[str, object]]:
    batches = [part[table] for part in parts if table in part]
    return pa.Table.from_batches(batches).to_pylist() if batches else []


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), data=st.data())
def test_every_row_is_in_one_half_and_events_are_with_their_span(counts: list[int], data: st.DataObject) -> None:
    parts = [part_of(100 * number, count) for number, count in enumerate(counts)]
    wanted = data.draw(st.integers(0, sum(counts)))
    head, rest = split(parts, wanted)

    assert span_count(head) == wanted
    for table in ("spans", "span_events"):
        assert [*rows_of(head, table), *rows_of(rest, table)] == rows_of(parts, table)
    ids = {row["span_id"] for row in rows_of(head, "spans")}
    assert {row["span_id"] for row in rows_of(head, "span_events")} == {n for n in ids if int(str(n)) % 2}
    assert rows_of(rest, "ingest_errors") == rows_of(parts, "ingest_errors")
    assert not rows_of(head, "ingest_errors")
    if wanted:
        assert rows_of(head, "resources")


def count(store: Store, table: str) -> int:
    [(rows,)] = store.cursor().execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)


def many(table: str, first: int, rows: int) -> pa.RecordBatch:
    """Rows that differ in their span."""
    batch = make_batch(table).take(pa.array([0] * rows))
    spans = pa.array(range(first, first + rows), pa.uint64())
    return batch.set_column(batch.schema.get_field_index("span_id"), batch.schema.field("span_id"), spans)


def test_under_load_row_groups_are_full_and_the_position_is_told_at_the_end_of_a_request(store: Store) -> None:
    told: list[Position] = []
    with Writer(store, linger_seconds=600, max_queued_bytes=1 << 30, on_commit=told.append) as writer:
        for number in range(3):
            part = {"spans": many("spans", 1 + number * 30_000, 30_000), "ingest_errors": make_batch("ingest_errors")}
            writer.append_journaled([part], Position(1, number + 1))
    groups = store.cursor().execute(
        "SELECT sum(count) FROM pragma_storage_info('spans') WHERE column_name = 'span_id' AND segment_type <> 'VALIDITY' "
        "GROUP BY row_group_id ORDER BY row_group_id"
    )
    assert [int(rows) for (rows,) in groups.fetchall()] == [*[ROW_GROUP_ROWS] * 4, 90_000 - 4 * ROW_GROUP_ROWS]
    assert told == [Position(1, 1), Position(1, 2), Position(1, 3)]
    assert writer.status().requests == 3
    assert (count(store, "spans"), count(store, "ingest_errors")) == (90_000, 3)


def test_a_request_of_which_a_piece_was_stored_is_written_again_without_doubles(store: Store) -> None:
    whole = [part_of(0, 700), part_of(1000, 300)]
    head, _ = split(whole, 800)
    with Writer(store) as writer:
        for part in head:
            writer.append(part).result(60)
    with Writer(store) as writer:
        writer.append_journaled(whole, Position(1, 1))
    assert (count(store, "spans"), count(store, "span_events")) == (1000, 1000)
    assert (count(store, "resources"), count(store, "ingest_errors")) == (1, 2)

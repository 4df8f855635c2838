"""The derived tables say what the spans say: every trace, every key, the whole time."""

from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import schema
from collector.store.derived import INCOMPLETE, MAX_KEYS, attribute_key_id, derived_rows
from tests.collector.store.evidence_rows import make_batch, make_row

LOW = 2**64 - 1


def derive(*spans: dict[str, object]) -> dict[str, list[dict[str, object]]]:
    batches = derived_rows({"spans": make_batch("spans", *(make_row("spans", **span) for span in spans))})
    return {table: batch.to_pylist() for table, batch in batches.items()}


def keys_of(rows: list[dict[str, object]]) -> set[tuple[object, object]]:
    return {(row["key"], row["stored_in"]) for row in rows}


def test_the_batches_have_the_schemas_of_the_derived_tables() -> None:
    derived = derived_rows({"spans": make_batch("spans")})

    assert {table: batch.schema for table, batch in derived.items()} == {
        table: schema.arrow_schema(table) for table in schema.DERIVED_TABLES
    }


@pytest.mark.parametrize(
    "batches", [{}, {"resources": make_batch("resources")}, {"spans": make_batch("spans").slice(1)}]
)
def test_without_spans_there_is_nothing_to_derive(batches: dict[str, pa.RecordBatch]) -> None:
    assert derived_rows(batches) == {}


@given(st.lists(st.tuples(st.uuids(), st.integers(0, 2**62)), min_size=1, max_size=40), st.integers(0, 39))
def test_every_trace_of_a_slice_has_a_range_that_holds_its_spans(spans: list[tuple[UUID, int]], skipped: int) -> None:
    whole = make_batch("spans", *(make_row("spans", trace_id=t, received_unix_nano=r) for t, r in spans))
    kept = spans[skipped % len(spans) :]
    arrivals = derived_rows({"spans": whole.slice(skipped % len(spans))})["trace_arrivals"].to_pylist()

    assert sorted(row["trace_id_low"] for row in arrivals) == sorted({t.int & LOW for t, _ in kept})
    for row in arrivals:
        assert row["first_received_unix_nano"] == min(r for _, r in kept)
        assert row["last_received_unix_nano"] == max(r for _, r in kept)


def test_the_keys_of_both_maps_once_each_with_the_first_time() -> None:
    derived = derive(
        {"attributes": [("a", "1"), ("b", "2")], "received_unix_nano": 7},
        {"attributes": None, "attributes_json": [("a", "3")], "received_unix_nano": 5},
        {"attributes": [("a", "4")], "received_unix_nano": 9},
    )

    assert keys_of(derived["attribute_keys"]) == {("a", "attributes"), ("b", "attributes"), ("a", "attributes_json")}
    assert {row["first_received_unix_nano"] for row in derived["attribute_keys"]} == {5}
    for row in derived["attribute_keys"]:
        assert row["attribute_key_id"] == attribute_key_id(str(row["stored_in"]), str(row["key"]))


def test_a_slice_has_its_own_keys_alone() -> None:
    spans = [make_row("spans", attributes=[(key, "x")]) for key in "abcde"]
    derived = derived_rows({"spans": make_batch("spans", *spans).slice(1, 2)})

    assert {key for key, _ in keys_of(derived["attribute_keys"].to_pylist())} == {"b", "c"}


def test_spans_without_attributes_have_no_keys() -> None:
    assert derive({"attributes": None}, {"attributes": []})["attribute_keys"] == []


def test_ids_are_the_same_for_ever() -> None:
    assert attribute_key_id("attributes", "app.tenant") == 674079754927470124
    assert attribute_key_id("attributes", "ä") != attribute_key_id("attributes_json", "ä")


@pytest.mark.parametrize(("count", "listed"), [(MAX_KEYS, MAX_KEYS), (MAX_KEYS + 1, 1)])
def test_whoever_sends_values_as_keys_gets_one_row_that_says_so(count: int, listed: int) -> None:
    rows = derive({"attributes": [(f"key-{n}", "x") for n in range(count)]})["attribute_keys"]

    assert len(rows) == listed
    assert (rows[0]["key"] == INCOMPLETE) == (count > MAX_KEYS)

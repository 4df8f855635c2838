"""What several relations read from the same columns."""

import polars as pl
import pytest

from collector.forensics.columns import is_error, pairs_of, request_key_of
from collector.forensics.tables import compile_sql, spans
from tests.collector.forensics.factories import make_span, store


@pytest.mark.parametrize(
    ("request_id", "key"),
    [
        (None, None),
        ("", None),
        ("short", "short"),
        ("84961386-6d84-929d-98bd-c5aee93b5c88", "84961386-6d84-29d-98bd-c5aee93b5c88"),
    ],
)
def test_a_request_key_has_no_sampling_decision(request_id, key):
    table = spans()
    sql = compile_sql(table.select(key=request_key_of(table.provenance_request_id)))
    assert store([make_span(provenance_request_id=request_id)])(sql)["key"].to_list() == [key]


@pytest.mark.parametrize(
    ("columns", "failed"),
    [
        ({}, False),
        ({"status_code": "ERROR"}, True),
        ({"http_response_status_code": 499}, False),
        ({"http_response_status_code": 503}, True),
        ({"rpc_grpc_status_code": 5}, False),
        ({"rpc_grpc_status_code": 14}, True),
    ],
)
def test_what_counts_as_an_error(columns, failed):
    table = spans()
    sql = compile_sql(table.select(error=is_error(table)))
    assert store([make_span(**columns)])(sql)["error"].to_list() == [failed]


@pytest.mark.parametrize(
    "value",
    [
        {"a": "b", "c": None},
        [{"key": "a", "value": "b"}, {"key": "c", "value": None}],
        pl.Series([{"key": "a", "value": "b"}, {"key": "c", "value": None}]),
        [("a", "b"), ("c", None)],
    ],
)
def test_a_map_is_read_in_every_form_that_engines_give_it(value: object) -> None:
    assert pairs_of(value) == [("a", "b")]
    assert pairs_of(None) == []

"""Short cuts find what the long way finds: newest traces in parts, keys by their catalogue, traces by their arrival."""

import random
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.errors import QueryError
from collector.forensics.columns import destination_of_row, is_error, is_error_row
from collector.forensics.edges import destination_of
from collector.forensics.ids import hex_ids
from collector.forensics.search import TraceFilter, search, search_sql
from collector.forensics.short_cuts import ARRIVED_JOIN, NONE, arrived, short_cuts, with_arrivals
from collector.forensics.tables import Query, Window, compile_sql, spans
from collector.forensics.traces import trace
from collector.schema import DERIVED_TABLES, TABLES, ddl
from collector.store.derived import derived_rows
from tests.collector.forensics.factories import MS, T0, S, make_span, to_arrow

HOUR = 3600 * S


def filled(rows: list[dict[str, Any]], *, derived: bool = True, apart: bool = False) -> tuple[Query, list[str]]:
    """A store with these spans, written together or each `apart`, and what is derived from them; and what it was asked."""
    connection = duckdb.connect()
    for table in (*TABLES, *DERIVED_TABLES):
        connection.execute(ddl(table))
    batch = to_arrow("spans", rows).combine_chunks().to_batches()[0]
    groups = [batch.slice(n, 1) for n in range(batch.num_rows)] if apart else [batch]
    for group in groups:
        contents = {"spans": group} | (derived_rows({"spans": group}) if derived else {})
        for table, content in contents.items():
            connection.register("incoming", content)
            connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")
            connection.unregister("incoming")
    asked: list[str] = []

    def query(sql: str) -> pl.DataFrame:
        asked.append(sql)
        return pl.DataFrame(connection.sql(sql).to_arrow_table())

    return query, asked


def busy_hours(traces: int, *, seed: int) -> list[dict[str, Any]]:
    """Traces over six hours: some long, some without a root, some with spans hours apart, one in the far future."""
    draw = random.Random(seed)
    rows = []
    for number in range(traces):
        start = T0 + draw.randrange(6 * HOUR)
        lasts = draw.choice([50 * MS, 2 * S, 90 * S, 3 * HOUR])
        for n in range(draw.randrange(1, 5)):
            begin = start + (n * lasts // 5)
            rows.append(
                make_span(
                    trace_id=number + 1,
                    span_id=number * 10 + n + 1,
                    parent_span_id=None if n == 0 and draw.random() < 0.8 else number * 10 + 9,
                    service_name=draw.choice(
                        ["gateway", "checkout", "rare"] if draw.random() < 0.05 else ["gateway", "checkout"]
                    ),
                    start_time_unix_nano=begin,
                    duration_ns=lasts // (n + 1),
                    status_code="ERROR" if draw.random() < 0.1 else "UNSET",
                    received_unix_nano=begin + 5 * S,
                )
            )
    rows.append(make_span(trace_id=10**9, span_id=10**9, start_time_unix_nano=T0 + 10**9 * S, received_unix_nano=T0))
    return rows


FILTERS = [
    TraceFilter(limit=100),
    TraceFilter(limit=20, service="gateway"),
    TraceFilter(limit=7, service="rare"),
    TraceFilter(limit=20, errors_only=True),
    TraceFilter(limit=20, service="checkout", errors_only=True, min_duration_ns=1 * S),
    TraceFilter(limit=5, max_duration_ns=60 * MS),
    TraceFilter(limit=20, window=Window(T0 + HOUR, T0 + 5 * HOUR)),
    TraceFilter(limit=20, window=Window(None, T0 + 3 * HOUR), service="checkout"),
    TraceFilter(limit=20, window=Window(T0 + 2 * HOUR, None)),
    TraceFilter(limit=10_000),
    TraceFilter(limit=20, order="slowest"),
]


@pytest.mark.parametrize("wanted", FILTERS)
def test_the_newest_in_parts_are_those_of_the_whole(wanted: TraceFilter) -> None:
    query, asked = filled(busy_hours(1500, seed=3))
    found = search(query, wanted)
    narrowed = [sql for sql in asked if "spans" in sql]
    whole = hex_ids(query(search_sql(wanted))).select(found.columns)

    assert found.rows() == whole.rows()
    assert found.height > 0
    if wanted == FILTERS[0]:  # it did not read everything
        assert search_sql(wanted) not in narrowed


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("wanted", FILTERS)
def test_both_forms_of_the_statement_give_the_same(wanted: TraceFilter, *, few: bool) -> None:
    query, _ = filled(busy_hours(300, seed=4))

    columns = search(query, wanted).columns
    assert query(search_sql(wanted, few=few)).select(columns).equals(query(search_sql(wanted)).select(columns))


def test_a_store_without_spans_has_no_newest() -> None:
    query, _ = filled([make_span()])
    assert search(query, TraceFilter(service="nobody")).is_empty()


# --- keys -----------------------------------------------------------------------------------------------------------------

TENANT = make_span(trace_id=1, attributes={"app.tenant": "acme"}, attributes_json={"app.retries": "3"})
OTHER = make_span(trace_id=2, span_id=2, name="app.none=1 in a name", url_path="/?id=5")


@pytest.mark.parametrize("derived", [True, False])
@pytest.mark.parametrize(
    ("words", "traces"),
    [("app.tenant=acme", [1]), ("app.retries=3", [1]), ("app.tenant=other", []), ("app.none=1", []), ("id=5", [2])],
)
def test_attributes_are_found_with_and_without_their_catalogue(words: str, traces: list[int], *, derived: bool) -> None:
    query, _ = filled([TENANT, OTHER], derived=derived)

    assert [int(t, 16) for t in search(query, TraceFilter(text=words))["trace_id"]] == traces


MAPS = st.none() | st.dictionaries(
    st.sampled_from(["app.a", "app.b"]), st.none() | st.sampled_from(["x", "y", ""]), max_size=2
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(MAPS, MAPS), min_size=1, max_size=8), st.sampled_from(["x", "y", ""]))
def test_an_attribute_is_found_where_its_key_has_the_value(rows: list[tuple[Any, Any]], value: str) -> None:
    query, _ = filled(
        [make_span(trace_id=99, span_id=99, attributes={"app.a": "another"})]
        + [
            make_span(trace_id=n, span_id=n, attributes=plain, attributes_json=typed)
            for n, (plain, typed) in enumerate(rows, 1)
        ]
    )
    having = {n for n, maps in enumerate(rows, 1) if any(m is not None and m.get("app.a") == value for m in maps)}

    known = short_cuts(query, with_keys=True)
    for few in (True, False):
        found = hex_ids(query(search_sql(TraceFilter(text=f"app.a={value}"), known, few=few)))
        assert {int(t, 16) for t in found["trace_id"]} == having


def test_a_key_that_nobody_has_is_answered_without_the_spans() -> None:
    query, asked = filled([TENANT, OTHER])

    assert search(query, TraceFilter(text="app.none=1")).is_empty()
    assert not any('"spans"' in sql for sql in asked)


def test_a_catalogue_that_says_that_it_is_incomplete_is_not_believed() -> None:
    many = make_span(trace_id=3, span_id=3, attributes={f"key.{n}": "x" for n in range(1001)})
    query, _ = filled([many])

    assert short_cuts(query, with_keys=True).keys is None
    assert search(query, TraceFilter(text="key.7=x")).height == 1


# --- arrival --------------------------------------------------------------------------------------------------------------


def test_a_trace_that_came_in_two_parts_is_found_whole() -> None:
    rows = [make_span(trace_id=1, span_id=n, received_unix_nano=T0 + n * HOUR) for n in (1, 2)]
    connection_rows = [*rows, make_span(trace_id=2, span_id=3, received_unix_nano=T0 + 9 * HOUR)]
    query, _ = filled(connection_rows)

    assert trace(query, f"{1:032x}").height == 2
    assert [int(t, 16) for t in search(query, TraceFilter(text=f"{1:032x}"))["trace_id"]] == [1]


@pytest.mark.parametrize("derived", [True, False])
def test_a_trace_is_found_whole_and_another_not_at_all(*, derived: bool) -> None:
    rows = busy_hours(200, seed=6)
    query, _ = filled(rows, derived=derived)

    for number in (1, 77, 200):
        assert trace(query, f"{number:032x}").height == sum(row["trace_id"] == number for row in rows) > 0
        assert search(query, TraceFilter(text=f"{number:032x}")).height == 1
    assert trace(query, f"{201:032x}").is_empty()
    assert search(query, TraceFilter(text=f"{201:032x}")).is_empty()


def test_a_trace_that_is_not_there_is_looked_for_among_the_newest_alone() -> None:
    rows = [make_span(trace_id=n, span_id=n, received_unix_nano=T0 + n * HOUR) for n in (1, 2, 3)]
    query, _ = filled(rows, apart=True)
    unknown = 9

    for number, arrived_from in ((1, 1), (2, 2), (unknown, 3)):
        sql = compile_sql(arrived(spans(), number).select("received_unix_nano"))
        written = f"SELECT received_unix_nano FROM spans{ARRIVED_JOIN.format(low=number)}"
        for statement in (sql, written):
            assert query(statement).to_series().to_list() == [T0 + arrived_from * HOUR]


def test_a_source_without_the_table_is_asked_without_it() -> None:
    asked = []

    def ask(known: Any) -> pl.DataFrame:
        asked.append(known)
        if known.has_arrivals:
            raise QueryError("Table with name trace_arrivals does not exist!")
        return pl.DataFrame({"a": [1]})

    assert with_arrivals(ask).height == 1
    assert asked[-1] == NONE


@pytest.mark.parametrize("reason", ["the query was interrupted", "out of memory"])
def test_another_failure_is_not_tried_again(reason: str) -> None:
    asked = []

    def ask(known: Any) -> pl.DataFrame:
        asked.append(known)
        raise QueryError(reason)

    with pytest.raises(QueryError, match=reason):
        with_arrivals(ask)
    assert len(asked) == 1


# --- rows as tables -------------------------------------------------------------------------------------------------------

HOSTS = st.sampled_from([None, "Checkout", "10.0.0.7", "fd00::7", "a.example"])
PORTS = st.sampled_from([None, 80, 8080, 65535])
URLS = st.sampled_from([
    None, "", "http://Shop.example/x", "https://shop.example", "https://u:p@h.example:444/a?b", "http://[fd00::1]:81/",
    "ftp://files.example/", "/only/a/path", "https://a.example\\@b.example/", "HTTPS://UPPER.example:9/", "wss://w.example/#x",
])  # fmt: skip
NAMES = st.sampled_from([None, "db", "other"])
ROWS = st.builds(
    make_span,
    kind=st.just("CLIENT"),
    server_address=HOSTS,
    server_port=PORTS,
    network_peer_address=HOSTS,
    network_peer_port=PORTS,
    url_full=URLS,
    peer_service=NAMES,
    db_system_name=NAMES,
    rpc_service=NAMES,
    status_code=st.sampled_from(["UNSET", "OK", "ERROR"]),
    http_response_status_code=st.sampled_from([None, 200, 499, 500, 503]),
    rpc_grpc_status_code=st.sampled_from([None, 0, 1, 2, 13, 16]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROWS, min_size=20, max_size=40))
def test_what_is_decided_row_by_row_is_what_the_table_says(rows: list[dict[str, Any]]) -> None:
    query, _ = filled([row | {"span_id": n + 1} for n, row in enumerate(rows)])
    table = spans()
    frame = query(compile_sql(table.mutate(said=destination_of(table), failed=is_error(table))))

    for row in frame.iter_rows(named=True):
        assert destination_of_row(row) == row["said"]
        assert is_error_row(row) == row["failed"]

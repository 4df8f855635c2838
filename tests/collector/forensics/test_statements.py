"""Statements that are filled in: the same literals as if they had been compiled, whatever people type."""

import itertools
from uuid import UUID

import duckdb
import ibis
import ibis.expr.types as ir
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from collector.forensics.edges import edges_sql
from collector.forensics.search import TraceFilter, search_sql
from collector.forensics.stages import given
from collector.forensics.statements import REACH, TRACE_ID, compiled_once, fill, number, text, windowed
from collector.forensics.tables import Window, compile_sql, spans

# What DuckDB's parser takes for the end of a statement, and what no text column can hold, stay out.
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
BLANK = text("words")


@drawn(WORDS, WORDS)
def test_a_text_arrives_as_it_was_typed(first: str, second: str) -> None:
    sql = fill(f"SELECT '{text('service')}' AS a, '{text('words')}' AS b", service=first, words=second)

    assert duckdb.execute(sql).fetchall() == [(first, second)]


@pytest.mark.parametrize(
    "hostile", ["'", "''", "\\'", "'; DROP TABLE spans; --", f"'{BLANK}'", BLANK, TRACE_ID, str(number("min"))]
)
def test_what_looks_like_a_quote_or_a_blank_stays_text(hostile: str) -> None:
    sql = fill(f"SELECT '{text('service')}', '{BLANK}'", service=hostile, words="other", min=1)

    assert duckdb.execute(sql).fetchall() == [(hostile, "other")]


@drawn(st.integers(-(2**62), 2**62), st.integers(-REACH, REACH))
def test_a_number_keeps_its_distance_to_the_blank(value: int, margin: int) -> None:
    sql = fill(f"SELECT {number('since') + margin}::HUGEINT", since=value)

    assert duckdb.execute(sql).fetchall() == [(value + margin,)]


@drawn(st.lists(WORDS, max_size=4), WORDS)
def test_a_list_arrives_as_it_was_typed(among: list[str], word: str) -> None:
    sql = fill(f"SELECT '{text('word')}' IN ('{text('words')}')", word=word, words=among)

    assert duckdb.execute(f"SELECT coalesce(({sql}), false)").fetchall() == [(word in among,)]


@drawn(st.lists(st.uuids(), max_size=3), st.uuids())
def test_trace_ids_arrive_one_or_many(among: list[UUID], wanted: UUID) -> None:
    table = spans()
    blank = compile_sql(table.filter(table.trace_id.isin([ibis.literal(UUID(TRACE_ID), "uuid")])).select("trace_id"))
    many = fill(blank, trace_id=[str(u) for u in among]).replace('"spans"', "(SELECT ?::UUID AS trace_id)")

    assert duckdb.execute(many, [wanted]).fetchall() == ([(wanted,)] if wanted in among else [])


def test_a_statement_that_is_given_is_written_as_it_is_and_read_by_name() -> None:
    table = given("known", "WITH a AS (SELECT 5 AS n) SELECT n, 'x' AS word FROM a", {"n": "int64", "word": "string"})
    sql = compile_sql(table.filter(table.n > 4).group_by("word").aggregate(n=table.n.sum()))

    assert "known AS NOT MATERIALIZED (WITH a AS (SELECT 5 AS n)" in sql
    assert duckdb.execute(sql).fetchall() == [("x", 5)]


def test_numbers_without_a_value_and_other_numbers_stay() -> None:
    sql = f"SELECT {number('until')}, {3 * 10**18}, {6 * 10**18}, {2**63 - 1}, {-(2**63)}"

    assert fill(sql, since=1) == sql


def test_every_blank_has_19_digits_at_its_whole_reach_and_none_reaches_another() -> None:
    blanks = sorted(number(name) for name in ("since", "until", "span_id", "min", "max", "value"))

    assert all(len(str(blank - REACH)) == len(str(blank + REACH)) == 19 for blank in blanks)
    assert all(str(blank - REACH)[0] in "56789" for blank in blanks)
    assert all(b - a > 2 * REACH for a, b in itertools.pairwise(blanks))


@pytest.mark.parametrize(
    "window", [Window(), Window(5, None), Window(None, 7), Window(1_790_000_000 * 10**9, 1_790_000_060 * 10**9)]
)
def test_a_window_is_filled_in_as_it_would_be_compiled(window: Window) -> None:
    def build(w: Window) -> ir.Table:
        return w.of(spans(), margin_ns=3600 * 10**9).select("span_id")

    filled = windowed(window, lambda blank: compiled_once(build, blank))

    assert filled == compile_sql(build(window))


def test_the_same_shape_is_compiled_once() -> None:
    edges_sql(Window(1, 2))
    search_sql(TraceFilter(service="a", window=Window(3, None)))
    before = compiled_once.cache_info().misses
    edges_sql(Window(10**18, 10**18 + 5))
    search_sql(TraceFilter(service="b'", window=Window(4, None)))

    assert compiled_once.cache_info().misses == before

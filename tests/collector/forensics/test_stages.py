"""Stages: computed once, in an order that an engine can bind, and the same answer as without them."""

import ibis
import pytest

from collector.forensics.stages import compile_stages, once, staged
from collector.forensics.tables import spans
from tests.collector.forensics.factories import make_span, store


def test_a_stage_that_is_used_twice_is_written_once_and_after_what_it_needs() -> None:
    inner = staged("inner_rows", spans().select("span_id", "name"))
    outer = staged("outer_rows", inner.filter(inner.name != "x"))
    both = outer.union(outer).union(inner)
    sql = compile_stages(both)
    assert sql.count("inner_rows AS MATERIALIZED (") == sql.count("outer_rows AS MATERIALIZED (") == 1
    assert sql.index("inner_rows AS") < sql.index("outer_rows AS")
    query = store([make_span(name="x"), make_span(name="y")])
    assert sorted(query(sql)["name"].to_list()) == ["x", "y", "y", "y"]


def test_two_stages_of_one_name_that_differ_are_two() -> None:
    few = staged("rows", spans().filter(spans().name == "x").select("name"))
    others = staged("rows", spans().filter(spans().name != "x").select("name"))
    query = store([make_span(name="x"), make_span(name="y"), make_span(name="z")])
    assert sorted(query(compile_stages(few.union(others)))["name"].to_list()) == ["x", "y", "z"]


def test_without_stages_the_statement_is_what_ibis_writes() -> None:
    table = spans().select("name")
    assert compile_stages(table) == ibis.to_sql(table, dialect="duckdb", pretty=False)


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_rows_that_come_more_often_are_kept_once(copies: int) -> None:
    rows = [make_span(trace_id=1, span_id=1, name=f"copy {n}") for n in range(copies)] + [
        make_span(trace_id=1, span_id=2)
    ]
    answer = store(rows)(
        compile_stages(once("spans", spans().select("trace_id", "span_id", "name"), "trace_id", "span_id"))
    )
    assert sorted(answer["span_id"].to_list()) == [1, 2]

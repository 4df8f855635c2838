"""Attribute values that set traces apart: from columns, attributes and resources; not those of chance, of everybody, or of one trace."""

import random

import polars as pl
import pytest

from collector.forensics.comparison import draw
from collector.forensics.deltas import SCHEMA, separating, slow_and_normal, values_in, values_of
from collector.forensics.tables import Window
from tests.collector.forensics.factories import MS, T0, S, make_span, store


def said(rows):
    return pl.DataFrame(rows, schema=["trace_id", "service_name", "key", "value"], orient="row")


def ids(*numbers):
    return pl.Series([str(n) for n in numbers])


def test_what_sets_slow_traces_apart_comes_first():
    rng = random.Random(1)
    rows = []
    for number in range(200):
        slow = number < 60
        rows += [
            (str(number), "shop", "version", "2" if slow and number % 10 else "1"),
            (str(number), "shop", "build", "2b" if slow and number % 10 else "1b"),  # always with version
            (str(number), "shop", "customer", rng.choice("abc")),
            (str(number), "shop", "request", str(number)),
            (str(number), "shop", "region", "north"),
        ]
    found = separating(said(rows), ids(*range(60)), ids(*range(60, 200)))
    assert found.schema == SCHEMA
    first = found.row(0, named=True)
    assert (first["service"], first["key"], first["value"]) == ("shop", "build", "2b")
    assert (first["slow_ratio"], first["normal_ratio"], first["slow_traces"]) == (0.9, 0, 54)
    assert {"version", "request", "region", "customer"}.isdisjoint(found["key"])


def test_ratios_are_of_the_traces_that_reach_the_service():
    rows = [(str(n), "rare", "pod", "x" if n % 2 else "y") for n in range(0, 200, 5)]
    slow = [n for n in range(0, 200, 5) if n % 2]
    found = separating(said(rows), ids(*slow), ids(*(set(range(200)) - set(slow))))
    assert found["slow_ratio"].to_list() == [1.0]


@pytest.mark.parametrize("slow", [0, 3])
def test_few_traces_prove_nothing(slow):
    rows = [(str(n), "shop", "pod", "x" if n < slow else "y") for n in range(50)]
    assert separating(said(rows), ids(*range(slow)), ids(*range(slow, 50))).is_empty()


@pytest.mark.slow
def test_columns_attributes_and_resources_of_a_store():
    spans = []
    for number in range(80):
        late = number >= 60
        spans.append(
            make_span(
                trace_id=number + 1, start_time_unix_nano=T0 + number * S, duration_ns=(200 if late else 20) * MS,
                service_instance_id="shop-2" if late else "shop-1", http_route="/buy",
                attributes={"customer": "big" if late and number % 4 else "small"},
                attributes_json={"items": "9" if late and number % 5 else "1"},
            )
        )  # fmt: skip
    query = store(spans)
    baseline, incident = Window(T0, T0 + 40 * S), Window(T0 + 40 * S, T0 + 80 * S)
    was, now = draw(query, baseline), draw(query, incident)
    slow, normal = slow_and_normal(was, now)
    assert len(slow) == 20
    values = pl.concat([values_in(query, baseline, was.last), values_in(query, incident, now.last)])
    found = separating(values, slow, normal).select("key", "value").rows()
    assert found == [("service.instance.id", "shop-2"), ("items", "9"), ("customer", "big")]
    assert set(values_of(query, [str(t) for t in slow[:1]], incident)["key"]) == {
        "service.instance.id", "http.route", "customer", "items",
    }  # fmt: skip

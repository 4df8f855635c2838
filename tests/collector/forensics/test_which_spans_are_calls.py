"""Entries and exits of random traces, beside the definition of `edges` carried out span by span."""

import random

from collector.forensics.edges import calls_in
from collector.forensics.tables import Window, compile_sql
from tests.collector.forensics.factories import MS, T0, make_span, store

TRACES = 200
CLIENTS, SERVERS = {"CLIENT", "PRODUCER"}, {"SERVER", "CONSUMER"}


def random_trace(random_, trace_id):
    """Spans of any kind below any other, or below one that is missing; and second copies of some of them, which start later."""
    spans = [
        make_span(
            trace_id=trace_id,
            span_id=number,
            parent_span_id=random_.choice([None, random_.randrange(1, 14), max(number - 1, 1), max(number - 1, 1)]),
            service_name=random_.choice("aaab"),
            name=f"operation {number}",
            kind=random_.choice(["CLIENT", "CLIENT", "INTERNAL", "INTERNAL", "INTERNAL", "SERVER", "PRODUCER"]),
            witness="proxy" if random_.random() < 0.2 else "app",
            start_time_unix_nano=T0 + number * MS,
            duration_ns=MS,
        )
        for number in range(1, random_.randrange(2, 12))
    ]
    later = {"start_time_unix_nano": T0 + 99 * MS, "kind": "SERVER"}
    return spans, [span | later for span in spans if random_.random() < 0.1]


def calls_of(spans):
    """(entries, exits) by their span ids, of one trace in which each span is there once."""
    everything = {span["span_id"]: span for span in spans}

    def app_parent(span):
        above = span["parent_span_id"]
        for _ in range(4):
            if above not in everything or everything[above]["witness"] != "proxy":
                break
            above = everything[above]["parent_span_id"]
        return above

    app = {i: span | {"app_parent": app_parent(span)} for i, span in everything.items() if span["witness"] != "proxy"}

    def is_entry(span):
        parent = app.get(span["app_parent"])
        crosses = parent is not None and parent["service_name"] != span["service_name"]
        return span["kind"] in SERVERS or crosses or (span["app_parent"] is None and span["kind"] not in CLIENTS)

    def calls_below(span_id, levels):
        children = [span for span in app.values() if span["app_parent"] == span_id]
        if any(is_entry(child) or child["kind"] in CLIENTS for child in children):
            return True
        return levels > 1 and any(calls_below(child["span_id"], levels - 1) for child in children)

    entries = {i for i, span in app.items() if is_entry(span)}
    exits = {i for i, span in app.items() if span["kind"] in CLIENTS and not calls_below(i, 3)}
    return entries, exits


def test_the_statement_finds_what_the_definition_says():
    random_ = random.Random(7)
    wanted: list[set[tuple[int, int]]] = [set(), set()]
    rows = []
    for trace_id in range(1, TRACES + 1):
        spans, copies = random_trace(random_, trace_id)
        rows += [*spans, *copies]
        for kind, ids in zip(wanted, calls_of(spans), strict=True):
            kind |= {(trace_id, span_id) for span_id in ids}
    random_.shuffle(rows)
    query, found = store(rows), calls_in(Window())
    for kind, table in zip(wanted, (found.entries, found.exits), strict=True):
        frame = query(compile_sql(table.select("trace_id", "span_id")))
        ids = [(int(str(trace_id).replace("-", ""), 16), span_id) for trace_id, span_id in frame.rows()]
        assert sorted(ids) == sorted(kind)
        assert len(ids) > TRACES / 2

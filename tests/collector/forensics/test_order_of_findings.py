"""An engine hands its rows on in any order: the same evidence is told in the same words."""

import random
from typing import Any

import polars as pl

from collector.forensics.shadow import examine_shadow
from collector.forensics.shadow_words import causes
from collector.forensics.tables import Query, Window
from collector.forensics.verdicts import REASONS
from tests.collector.forensics.factories import MS, T0, S, make_proxy_record, make_span, store


def unjudged(reason: str) -> dict[str, Any]:
    verdicts = dict.fromkeys(("verdict", "outbound_verdict", "inbound_verdict"), "unknown")
    return {**verdicts, "inbound_reason": reason, "outbound_reason": None, "calls": 2}


def test_of_causes_that_are_as_frequent_the_same_three_are_told() -> None:
    rows = [unjudged(reason) for reason in list(REASONS)[:6]]
    told = set()
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        told.add(causes(rows, "the callee's proxy"))
    assert len(told) == 1


def test_a_finding_of_shuffled_rows_is_the_same_finding() -> None:
    spans, lines = [], []
    for number in range(24):
        at, logged = T0 + number * S, number not in {20, 21}
        ids = {"trace_id": number + 1, "provenance_request_id": f"request-{number}", "url_path": "/", "duration_ns": MS}
        port = {"server_address": "pay", "server_port": 8000 + number}
        spans.append(make_span(span_id=1, kind="CLIENT", service_name="web", start_time_unix_nano=at, **ids, **port))
        spans.append(make_span(span_id=2, parent_span_id=1, service_name="pay", start_time_unix_nano=at, **ids))
        for direction, service in (("outbound", "web"), ("inbound", "pay")):
            whose = {"direction": direction, "service_name": service, "request_id": f"request-{number}"}
            if logged or direction == "outbound":
                lines.append(make_proxy_record(start_time_unix_nano=at, **whose))
    asked = store(spans, lines)
    [first, *others] = [examine_shadow(shuffled(asked, seed), Window()).findings for seed in range(4)]
    assert first[0].count == 2
    assert all(findings == first for findings in others)


def shuffled(query: Query, seed: int) -> Query:
    def ask(sql: str) -> pl.DataFrame:
        return query(sql).sample(fraction=1.0, shuffle=True, seed=seed)

    return ask

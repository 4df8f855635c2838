"""The mesh's own cost: differences of durations of one call, split where proxies' spans tell the parts."""

import pytest

from collector.forensics.cost import KEYS, PARTS, cost
from collector.forensics.tables import Window
from tests.collector.forensics.factories import MS, T0, S, make_span, next_id, store


def call(durations_ms, owners=(), *, start=T0, skew=0, caller="shop", callee="stock"):
    """One call: the client's span, the proxies' from its side to the other, the server's; each the next one's parent."""
    trace, parent, spans = next_id(), None, []
    services = [caller, *owners, callee]
    for place, (service, ms) in enumerate(zip(services, durations_ms, strict=True)):
        kind = "SERVER" if place == len(services) - 1 else "CLIENT"
        witness = "proxy" if 0 < place < len(services) - 1 else "app"
        span = make_span(
            trace_id=trace, parent_span_id=parent, service_name=service, name="Reserve", kind=kind, witness=witness,
            start_time_unix_nano=start + place * skew, duration_ns=int(ms * MS),
        )  # fmt: skip
        spans.append(span)
        parent = span["span_id"]
    return spans


def row(spans, by="mesh", window=None):
    frame = cost(store(spans), window or Window(), by)
    assert frame.height == 1
    return frame.row(0, named=True)


def parts(told):
    return [told[f"{part}_ns_p50"] for part in PARTS]


def test_without_proxies_a_hop_is_one_number():
    told = row([s for ms in (10, 20, 40) for s in call((ms, 5))])
    assert (told["calls"], told["proxied"], told["split"]) == (3, 0, 0)
    assert (told["client_ns_p50"], told["hop_ns_p50"]) == (20 * MS, 15 * MS)
    assert told["hop_ratio_p50"] == pytest.approx(0.75)
    assert parts(told) == [None] * 3


@pytest.mark.parametrize(
    ("durations", "owners", "expected"),
    [
        ((20, 17, 12, 10), ("shop", "stock"), [3, 5, 2]),
        ((20, 18, 17, 12, 11, 10), ("shop", "shop", "stock", "stock"), [3, 5, 2]),
        ((20, 17, 10), ("shop.prod",), [3, 7, None]),
        ((20, 12, 10), ("stock.prod",), [None, 8, 2]),
        ((20, 15, 10), ("gateway",), [None] * 3),
        ((20, 17, 16, 12, 10), ("shop", "gateway", "stock"), [None] * 3),
    ],
)
@pytest.mark.parametrize("skew", [0, -30 * S])
def test_proxies_split_it(durations, owners, expected, skew):
    told = row(call(durations, owners, skew=skew))
    assert told["hop_ns_p50"] == 10 * MS
    assert told["proxied"] == 1
    assert parts(told) == [None if ms is None else ms * MS for ms in expected]


def test_medians_are_of_differences_and_negative_ones_stay():
    # Medians of each side differ by 9 ms; the middle difference is 1 ms, and one client gave up early.
    told = row([s for pair in ((10, 9), (100, 1), (5, 50)) for s in call(pair)])
    assert told["hop_ns_p50"] == 1 * MS
    assert row(call((5, 50)))["hop_ns_p50"] == -45 * MS


def test_by_edge_and_hop():
    spans = [*call((9, 1)), *call((5, 1), callee="tax"), *call((5, 1), callee="tax")]
    by_edge = cost(store(spans), Window(), "edge")
    assert by_edge.select("caller", "callee", "calls").rows() == [("shop", "stock", 1), ("shop", "tax", 2)]
    by_hop = cost(store(spans), Window(), "hop")
    assert by_hop["operation"].to_list() == ["Reserve", "Reserve"]
    assert by_hop.columns[: len(KEYS["hop"])] == list(KEYS["hop"])


def test_what_is_no_call_is_left_out():
    lonely = make_span(kind="SERVER")
    doubled = call((10, 5)) * 2
    late = call((10, 5), start=T0 + 60 * S)
    told = row([lonely, *doubled, *late], window=Window(T0, T0 + S))
    assert told["calls"] == 1
    assert cost(store([lonely]), Window(), "mesh").is_empty()
    assert cost(store(), Window(), "edge").is_empty()

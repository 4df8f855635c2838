from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.tui.factories import make_span, make_trace, span_id_of
from tui.line import text_of
from tui.snapshots import Hop
from tui.tree import grow, hash_agreement, visible
from tui.views import waterfall
from tui.views.waterfall import sights


def spans(*rows):
    """(id, parent, kind, witness, service) → spans."""
    return [
        make_span(
            i,
            parent_span_id=None if parent is None else span_id_of(parent),
            kind=kind,
            witness=witness,
            service_name=service,
        )
        for i, parent, kind, witness, service in rows
    ]


MESHED = spans(
    (0, None, "CLIENT", "app", "a"),
    (1, 0, "CLIENT", "proxy", "a"),
    (2, 1, "SERVER", "proxy", "b"),
    (3, 2, "SERVER", "app", "b"),
    (4, 3, "INTERNAL", "app", "b"),
)


def shape(tree, *collapsed, proxies=False):
    nodes = visible(tree, {tree.keys[c] for c in collapsed}, proxies=proxies)
    return [(n.index, n.depth, n.hidden) for n in nodes]


def test_proxies_spans_fold_into_their_hop_and_unfold():
    tree = grow(make_trace(spans=MESHED))
    assert shape(tree) == [(0, 0, 0), (3, 1, 0), (4, 2, 0)]
    assert shape(tree, proxies=True) == [(i, i, 0) for i in range(5)]
    assert sights(tree, 3, tree.hops[3]) == ("seen", "seen", "seen", "seen")


def test_a_collapsed_span_hides_and_counts_everything_beneath_it():
    tree = grow(make_trace(spans=MESHED))
    assert shape(tree, 3) == [(0, 0, 0), (3, 1, 1)]
    assert shape(tree, 0) == [(0, 0, 4)]
    assert shape(tree, 4) == shape(tree), "a leaf has nothing to hide"


def test_a_proxy_without_a_hop_is_never_hidden():
    lone = spans((0, None, "SERVER", "proxy", "edge"), (1, 0, "CLIENT", "proxy", "edge"))
    assert shape(grow(make_trace(spans=lone))) == [(0, 0, 0), (1, 1, 0)]


def test_missing_proxies_are_unknown_unless_forensics_says_missed():
    bare = spans((0, None, "CLIENT", "app", "a"), (1, 0, "SERVER", "app", "b"))
    tree = grow(make_trace(spans=bare))
    assert sights(tree, 1, tree.hops[1]) == ("seen", "unknown", "unknown", "seen")

    tree = grow(make_trace(spans=bare, hops=[Hop(span_id_of(0), span_id_of(1), "missed", "seen")]))
    assert sights(tree, 1, tree.hops[1]) == ("seen", "missed", "seen", "seen")


def test_a_caller_that_never_arrived_is_missed_and_a_roots_is_unknown():
    tree = grow(make_trace(spans=spans((0, 9, "SERVER", "app", "b"), (1, None, "SERVER", "app", "c"))))
    assert sights(tree, 0, tree.hops[0])[0] == "missed"
    assert sights(tree, 1, tree.hops[1])[0] == "unknown"


def test_a_call_that_nobody_answered_is_drawn_at_the_client():
    tree = grow(make_trace(spans=spans((0, None, "CLIENT", "app", "a"), (1, 0, "CLIENT", "proxy", "a"))))
    assert sights(tree, 0, tree.hops[0]) == ("seen", "seen", "unknown", "unknown")
    assert shape(tree) == [(0, 0, 0)]


def test_a_service_that_calls_itself_has_a_proxy_on_both_sides():
    own = [replace(s, service_name="a") for s in MESHED]
    tree = grow(make_trace(spans=own))
    assert sights(tree, 3, tree.hops[3]) == ("seen",) * 4


@pytest.mark.parametrize(
    ("client", "server", "agree"), [("aa", "aa", True), ("aa", "bb", False), (None, "bb", None), ("aa", None, None)]
)
def test_hashes_agree_only_where_both_ends_state_one(client, server, agree):
    pair = [
        replace(MESHED[0], request_hash=client),
        replace(MESHED[3], request_hash=server, parent_span_id=span_id_of(0)),
    ]
    assert hash_agreement(grow(make_trace(spans=pair)), 1) is agree


def test_a_span_id_used_twice_makes_two_rows():
    tree = grow(make_trace(spans=[make_span(0), make_span(0)]))
    assert len(set(tree.keys)) == 2


any_spans = st.lists(
    st.builds(
        make_span,
        st.integers(0, 12),
        parent_span_id=st.none() | st.integers(0, 14).map(span_id_of),
        kind=st.sampled_from(["SERVER", "CLIENT", "INTERNAL", "PRODUCER", "CONSUMER", "UNSPECIFIED"]),
        witness=st.sampled_from(["app", "proxy"]),
        service_name=st.sampled_from(["a", "b", "日本", "\x1b[2Jx", ""]),
        name=st.text(max_size=40),
        duration_ns=st.integers(-(10**9), 10**12),
        start_time_unix_nano=st.integers(0, 2**62),
        error=st.booleans(),
        on_critical_path=st.booleans(),
        stamp_status=st.sampled_from([None, "absent", "unsigned", "mismatched", "malformed"]),
    ),
    max_size=25,
)


@given(any_spans, st.booleans(), st.integers(60, 200), st.sets(st.integers(0, 24)))
def test_cyclic_orphaned_and_doubled_spans_end_and_fit(items, proxies, width, collapsed):
    tree = grow(make_trace(spans=items))
    nodes = visible(tree, {tree.keys[c] for c in collapsed if c < len(items)}, proxies=proxies)
    assert len({n.index for n in nodes}) == len(nodes)
    rows = waterfall.rows(tree, nodes, frozenset())
    assert cell_len(text_of(rows.header(width))) <= width
    for i, node in enumerate(nodes):
        line = text_of(rows.line(i, width))
        assert cell_len(line) == width, line
        assert rows.find(rows.key(i)) == i
        assert waterfall.detail(tree, node.index)
    if not collapsed and proxies:
        assert [n.index for n in nodes] == list(range(len(items))), "unfolded, no span is missing"


def test_bars_stand_where_the_time_is():
    from tests.tui.factories import MILLI, NOW

    parts = [
        make_span(0, start_time_unix_nano=NOW, duration_ns=100 * MILLI),
        make_span(
            1,
            start_time_unix_nano=NOW + 50 * MILLI,
            duration_ns=50 * MILLI,
            on_critical_path=False,
            parent_span_id=span_id_of(0),
        ),
        make_span(2, start_time_unix_nano=NOW + 99 * MILLI, duration_ns=0, parent_span_id=span_id_of(0)),
    ]
    tree = grow(make_trace(spans=parts))
    rows = waterfall.rows(tree, visible(tree, set(), proxies=False), frozenset())
    bars = [[c for c in text_of(rows.line(i, 80)) if c in "━─"] for i in range(3)]
    assert set(bars[0]) == {"━"}
    assert set(bars[1]) == {"─"}
    assert len(bars[1]) * 2 in {len(bars[0]), len(bars[0]) + 1}
    assert len(bars[2]) == 1, "nothing is too short to be seen"

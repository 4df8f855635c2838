"""Own time and the critical path: cases drawn by hand, and what must hold for any set of parent ids and clocks."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.forensics.critical_path import (
    TraceSpan,
    build_tree,
    critical_path,
    critical_path_below,
    depth_first,
    main_root,
    self_times,
)

MS = 1_000_000


def span(span_id, parent, start_ms, end_ms, *, service="a", kind="INTERNAL"):
    return TraceSpan(span_id, parent, service, kind, round(start_ms * MS), round(end_ms * MS))


def own_and_path(*spans):
    tree = build_tree(spans)
    root = main_root(tree)
    assert root is not None
    path = critical_path_below(tree, root)
    return (
        {k: v / MS for k, v in self_times(tree).items()},
        {k: v / MS for k, v in path.items()},
    )


def test_sequential_children():
    own, path = own_and_path(span(1, None, 0, 100), span(2, 1, 10, 40), span(3, 1, 50, 90))
    assert own == {1: 30, 2: 30, 3: 40}
    assert path == own


def test_of_parallel_children_the_last_to_finish_is_on_the_path():
    own, path = own_and_path(span(1, None, 0, 100), span(2, 1, 10, 60), span(3, 1, 10, 95))
    assert own == {1: 15, 2: 50, 3: 85}
    assert path == {1: 15, 3: 85}


def test_an_earlier_overlapping_child_counts_until_the_later_one_began():
    _, path = own_and_path(span(1, None, 0, 100), span(2, 1, 0, 60), span(3, 1, 50, 100))
    assert path == {1: 0, 2: 50, 3: 50}


def test_a_child_that_outlives_its_parent_was_not_waited_for():
    own, path = own_and_path(span(1, None, 0, 100), span(2, 1, 20, 400))
    assert own == {1: 20, 2: 380}
    assert path == {1: 100}


def test_a_consumer_is_never_on_its_producers_path():
    _, path = own_and_path(
        span(1, None, 0, 50), span(2, 1, 10, 20, kind="PRODUCER"), span(3, 2, 12, 19, service="b", kind="CONSUMER")
    )
    assert path == {1: 40, 2: 10}


@pytest.mark.parametrize("skew_ms", [-200, -3, 0, 3, 200])
def test_clocks_that_disagree_change_neither_own_times_nor_the_path(skew_ms):
    own, path = own_and_path(
        span(1, None, 0, 100, kind="SERVER"),
        span(2, 1, 10, 60, kind="CLIENT"),
        span(3, 2, 15 + skew_ms, 55 + skew_ms, service="b", kind="SERVER"),
        span(4, 3, 20 + skew_ms, 50 + skew_ms, service="b"),
    )
    assert own == {1: 50, 2: 10, 3: 10, 4: 30}
    assert path == own


@pytest.mark.parametrize("skew_ms", [-5000, -200, 200])
def test_children_of_one_skewed_service_keep_their_distance(skew_ms):
    own, _ = own_and_path(
        span(1, None, 0, 100, kind="SERVER"),
        span(2, 1, 10 + skew_ms, 40 + skew_ms, service="b", kind="SERVER"),
        span(3, 1, 50 + skew_ms, 80 + skew_ms, service="b", kind="SERVER"),
    )
    assert own[1] == 40


def test_a_server_that_outlived_its_client_takes_all_of_the_clients_time():
    own, path = own_and_path(span(1, None, 0, 30, kind="CLIENT"), span(2, 1, 5, 500, service="b", kind="SERVER"))
    assert own[1] == 5
    assert path == {1: 5, 2: 25}


def test_orphans_and_circles_are_roots_of_their_own():
    tree = build_tree(
        [
            span(1, None, 0, 9),
            span(2, 99, 5, 50),
            span(3, 4, 7, 8),
            span(4, 3, 6, 9),
            span(5, 4, 1, 2),
            span(6, 6, 3, 4),
        ]
    )
    assert tree.roots == (1, 6, 2, 4)
    assert depth_first(tree, 4) == [(4, 0), (5, 1), (3, 1)]
    assert main_root(tree) == 1


def test_a_span_delivered_twice_counts_once():
    once = [span(1, None, 0, 10), span(2, 1, 2, 5)]
    assert self_times(build_tree(once * 2)) == self_times(build_tree(once))


def test_a_deep_chain_needs_no_deep_stack():
    own, path = own_and_path(*(span(i, i - 1 if i else None, i / 100, 1_000 - i / 100) for i in range(20_000)))
    assert len(path) == 20_000
    assert own == pytest.approx(path)


def test_frames_in_and_span_ids_out():
    frame = pl.DataFrame(
        {
            "span_id": [1, 2],
            "parent_span_id": [None, 1],
            "service_name": ["a", "a"],
            "kind": ["SERVER", "INTERNAL"],
            "start_time_unix_nano": [0, 10],
            "duration_ns": [100, -5],
        }
    )
    assert critical_path(frame) == {1: 100}
    assert critical_path(frame.clear()) == {}


SPANS = st.lists(
    st.builds(
        lambda i, p, service, kind, start, length: TraceSpan(i, p, service, kind, start, start + length),
        st.integers(0, 15),
        st.one_of(st.none(), st.integers(0, 20)),
        st.sampled_from("ab"),
        st.sampled_from(["SERVER", "CLIENT", "INTERNAL", "PRODUCER", "CONSUMER", "UNSPECIFIED"]),
        st.integers(0, 50 * MS),
        st.integers(0, 50 * MS),
    ),
    max_size=20,
)


@given(SPANS)
def test_any_parent_ids_give_a_forest_with_every_span_once(spans):
    tree = build_tree(spans)
    placed = [span_id for root in tree.roots for span_id, _ in depth_first(tree, root)]
    assert sorted(placed) == sorted({s.span_id for s in spans})


@given(SPANS)
def test_own_times_lie_between_zero_and_the_duration(spans):
    tree = build_tree(spans)
    for span_id, own in self_times(tree).items():
        assert 0 <= own <= tree.times[span_id].length


@given(SPANS)
def test_the_path_accounts_for_every_nanosecond_of_the_root(spans):
    tree = build_tree(spans)
    for root in tree.roots:
        path = critical_path_below(tree, root)
        assert sum(path.values()) == tree.times[root].length
        assert all(own >= 0 for own in path.values())

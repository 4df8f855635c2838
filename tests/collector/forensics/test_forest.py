"""Windows taken apart as a whole and trace by trace give the same bodies, limb by limb, whatever the spans say."""

import random
from collections.abc import Sequence

import polars as pl
import pytest

from collector.forensics import anatomy
from collector.forensics.anatomy import COLUMNS, take_apart_by_trace, take_apart_windows
from collector.forensics.forest import MAX_PROXIES, plant
from tests.collector.forensics.random_systems import FAULTS, random_system

SCHEMA = {
    "trace_id": pl.String, "span_id": pl.Int64, "parent_span_id": pl.Int64, "service_name": pl.String, "service_instance_id": pl.String,
    "name": pl.String, "kind": pl.String, "witness": pl.String, "start_time_unix_nano": pl.Int64, "duration_ns": pl.Int64, "error": pl.Boolean,
    "destination": pl.String,
}  # fmt: skip
KINDS = ("CLIENT", "SERVER", "PRODUCER", "CONSUMER", "INTERNAL")
T0 = 1_790_000_000_000_000_000


def frame(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").select(COLUMNS)


def garbage(rng: random.Random, *, traces: int, circles: bool) -> pl.DataFrame:
    """Spans of few ids, times, names and services, so that everything comes twice and ties with something, in any order."""
    rows: list[tuple[object, ...]] = []
    for trace in range(traces):
        step = rng.choice([1, 1_000, 1_000_000, 40_000_000])
        for _ in range(rng.randint(1, 14)):
            span = rng.randint(1, 12)
            witness = rng.choice(["app", "app", "app", "proxy"])
            itself = [span] if witness == "app" else []  # a proxy's that hangs from itself is a circle to step over
            parent = rng.choice([None, 99, rng.randint(1, 12)] if circles else [None, 99, *itself, *range(1, span)])
            rows.append((
                f"trace-{trace}", span, parent, rng.choice("abcd"), rng.choice(["pod-1", "pod-2", None]), rng.choice("xy"),
                rng.choice(KINDS), witness, T0 + step * rng.randint(0, 6), step * rng.randint(-1, 6),
                rng.choice([None, True, False]), rng.choice([None, "db", "cache"]),
            ))  # fmt: skip
    rng.shuffle(rows)
    return frame(rows)


def told(bodies: Sequence[anatomy.Body]) -> list[object]:
    """All of them, in their order."""
    return [
        (
            list(body.limbs),
            list(body.below.items()),
            list(body.gaps.items()),
            body.traces,
            [limb.entry for limb in body.entries],
        )
        for body in bodies
    ]


@pytest.mark.parametrize("seed", range(60))
def test_garbage(seed: int) -> None:
    rng = random.Random(seed)
    frames = [garbage(rng, traces=rng.choice([0, 1, 2, 40]), circles=False) for _ in range(2)]
    assert all(plant(part) is not None for part in frames)
    assert told(take_apart_windows(frames)) == told(take_apart_by_trace(frames))


@pytest.mark.parametrize("fault", FAULTS)
def test_random_systems(fault: str) -> None:
    system = random_system(5_000, fault, spans=1_500)  # type: ignore[arg-type]
    frames = [system.baseline, system.incident]
    assert all(plant(part) is not None for part in frames)
    assert told(take_apart_windows(frames)) == told(take_apart_by_trace(frames))


def chain(length: int, **one: object) -> pl.DataFrame:
    """A span below the other, those in the middle written by proxies; `one` is of the last."""
    spans = [dict.fromkeys(SCHEMA) | {
        "trace_id": "t", "span_id": n, "parent_span_id": n - 1 or None, "service_name": f"s{n % 3}", "name": "x", "kind": "SERVER",
        "witness": "app" if n in {1, length} else "proxy", "start_time_unix_nano": T0 + n, "duration_ns": 1_000 - n,
    } for n in range(1, length + 1)]  # fmt: skip
    spans[-1] |= one
    return frame([tuple(span[name] for name in COLUMNS) for span in spans])


@pytest.mark.parametrize(
    ("part", "is_plain"),
    [
        (chain(MAX_PROXIES + 1), True),
        (chain(MAX_PROXIES + 2), False),
        (chain(3, parent_span_id=3), True),
        (chain(3, duration_ns=2**61), False),
        (chain(3, start_time_unix_nano=2**62), False),
        (garbage(random.Random(1), traces=500, circles=True), False),
    ],
    ids=["proxies", "too many proxies", "its own parent", "endless", "far away", "circles"],
)
def test_what_is_not_plain_is_taken_apart_by_trace(part: pl.DataFrame, *, is_plain: bool) -> None:
    assert (plant(part) is not None) == is_plain
    plain = chain(2)
    assert told(take_apart_windows([part, plain])) == told(take_apart_by_trace([part, plain]))


def test_who_answers_most_often_is_asked_of_both_windows() -> None:
    system = random_system(5_001, "crash", spans=1_500)
    bodies = take_apart_windows([system.baseline, system.incident])
    assert not all(limb.answered for limb in bodies[1].limbs)

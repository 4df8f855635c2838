"""Synthetic network flows: single rows, clocks with jitter and losses, and days of ordinary traffic without anything in it to find."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import duckdb
import polars as pl

from collector.schema import DERIVED_TABLES, TABLES, ddl
from tests.collector.forensics.factories import Query, Row, S, next_id, to_arrow

# On the hour.
DAY0 = 1_790_000_400 // 3600 * 3600 * S
HOUR = 3600 * S
DAY = 24 * HOUR


def make_flow(**overrides: Any) -> Row:
    """One row of `flows`: 10.0.0.5 to 198.51.100.7:443 at DAY0, 1,200 bytes out and 5,000 in, unless told otherwise."""
    row: Row = dict.fromkeys(c.name for c in TABLES["flows"])
    row |= {
        "record_id": next_id(),
        "source": "conn.log",
        "format": "zeek",
        "start_time_unix_nano": DAY0,
        "duration_ns": S,
        "protocol": "tcp",
        "source_address": "10.0.0.5",
        "source_port": 40_000,
        "destination_address": "198.51.100.7",
        "destination_port": 443,
        "bytes_out": 1_200,
        "bytes_in": 5_000,
        "received_unix_nano": DAY0 + 2 * DAY,
    }
    assert overrides.keys() <= row.keys()
    return row | overrides


def clock(
    period_s: float, *, jitter: float = 0.0, missing: float = 0.0, seed: int = 0, days: float = 1, **flow: Any
) -> list[Row]:
    """A beacon: every `period_s`, off by up to `jitter` of it either way, a share of `missing` beats lost."""
    rng = random.Random(seed)
    rows, at = [], DAY0 + rng.random() * period_s * S
    while at < DAY0 + days * DAY:
        if rng.random() >= missing:
            rows.append(make_flow(start_time_unix_nano=int(at), **flow))
        at += period_s * (1 + rng.uniform(-jitter, jitter)) * S
    return rows


def ordinary(seed: int, *, days: int = 2, sources: int = 12) -> Iterator[Row]:
    """Poisson calls, more by day than by night, with uniform or log-normal sizes, of each source to six names or so."""
    rng = random.Random(seed)
    for source in range(sources):
        for destination in rng.sample(range(40), rng.randint(3, 8)):
            a_day = 10 ** rng.uniform(1, 2.7)
            swing, heavy = rng.uniform(0, 0.9), rng.random() < 0.5
            middle = rng.uniform(6, 12)
            for at in _moments(rng, a_day, swing, days):
                size = rng.lognormvariate(middle, 1) if heavy else rng.uniform(200, 4 * math.exp(middle))
                yield make_flow(
                    start_time_unix_nano=at,
                    duration_ns=int(rng.expovariate(0.5) * S),
                    source_address=f"10.0.1.{source}",
                    destination_address=f"198.51.100.{destination}",
                    destination_name=f"host-{destination}.example.com",
                    bytes_out=int(size),
                    bytes_in=int(size * rng.uniform(0.5, 20)),
                )


def _moments(rng: random.Random, a_day: float, swing: float, days: int) -> Iterator[int]:
    at = float(DAY0)
    while True:
        at += rng.expovariate(a_day * (1 + swing)) * DAY
        if at >= DAY0 + days * DAY:
            return
        if rng.random() < (1 + swing * math.sin(2 * math.pi * at / DAY)) / (1 + swing):
            yield int(at)


def evidence(**tables: Iterable[Mapping[str, Any]]) -> Query:
    """An in-memory store with these rows by table; returns its query function."""
    connection = duckdb.connect()
    for table in (*TABLES, *DERIVED_TABLES):
        connection.execute(ddl(table))
    for table, rows in tables.items():
        connection.register("incoming", to_arrow(table, rows))
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        connection.unregister("incoming")

    def query(sql: str) -> pl.DataFrame:
        answer = connection.execute(sql).to_arrow_reader()
        assert answer is not None
        return pl.DataFrame(answer.read_all())

    return query

"""Requests that are inserted together: what is derived from their spans is derived from all of them."""

from pathlib import Path

from collector.otlp import decode_group
from collector.otlp.synthetic import trace_request
from collector.store.database import Store
from collector.store.insert import Inserter

_MISSING = """
SELECT count(*) FROM spans s WHERE NOT EXISTS (
  SELECT 1 FROM trace_arrivals a WHERE a.trace_id_low = ('0x' || right(replace(s.trace_id::VARCHAR, '-', ''), 16))::UBIGINT
  AND s.received_unix_nano BETWEEN a.first_received_unix_nano AND a.last_received_unix_nano)"""


def test_every_trace_of_several_requests_has_an_arrival(tmp_path: Path) -> None:
    payloads = [trace_request(40, seed=seed).SerializeToString() for seed in range(4)]
    with Store.open(tmp_path / "evidence.duckdb") as store:
        cursor = store.cursor()
        inserter = Inserter(cursor)
        parts = [
            part for number, body in enumerate(payloads) for part in decode_group([body], [1_000_000 + number]).parts
        ]
        inserter.insert(parts)

        assert cursor.execute("SELECT count(*), count(DISTINCT trace_id) FROM spans").fetchone() == (160, 20)
        assert cursor.execute(_MISSING).fetchone() == (0,)
        cursor.close()

"""A status says since when there is evidence, where some was removed."""

from pathlib import Path

import polars as pl

from collector.forensics.status import status
from collector.store.database import Store
from collector.store.reader import Reader
from collector.store.retention import SINCE_KEY
from tests.collector.store.evidence_rows import make_batch

SINCE = 1_772_334_720 * 10**9


def test_since_when_there_is_evidence(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:

        def query(sql: str) -> pl.DataFrame:
            frame = pl.from_arrow(Reader(store).query(sql))
            assert isinstance(frame, pl.DataFrame)
            return frame

        assert status(query).evidence_since_unix_nano is None
        assert status(query).incomplete == "no spans yet"
        cursor = store.cursor()
        cursor.execute("INSERT INTO meta VALUES (?, ?)", [SINCE_KEY, str(SINCE)])
        assert status(query).incomplete == "no spans since 2026-03-01T03:12:00Z: what came before was removed"
        cursor.register("arrived", make_batch("spans"))
        cursor.execute("INSERT INTO spans SELECT * FROM arrived")
        cursor.unregister("arrived")

        assert status(query).evidence_since_unix_nano == SINCE
        assert "evidence since 2026-03-01T03:12:00Z" in status(query).incomplete.split("; ")

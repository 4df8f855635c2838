"""An import stores rows a row group at a time: none is lost, none comes twice, and none waits for others for ever."""

import io
import random
from pathlib import Path
from unittest import mock

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.exchange import storing
from collector.exchange.storing import Gathered
from collector.exchange.streams import Stream
from collector.store.database import ROW_GROUP_ROWS
from tests.collector.exchange.exchange_helpers import run_import

LINE = "2 1234 eni-1 10.0.{}.{} 10.0.0.2 {} 443 6 20 4249 1418530010 1418530070 ACCEPT OK\n"


def batch(numbers: range, text: str = "x") -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": list(numbers), "text": [text] * len(numbers)})


@given(st.lists(st.integers(0, 25), max_size=8))
def test_rows_come_out_in_order_and_a_row_group_at_a_time(sizes: list[int]) -> None:
    with mock.patch.object(storing, "ROW_GROUP_ROWS", 10):
        gathered = Gathered()
        groups, start = [], 0
        for size in sizes:
            groups += list(gathered.add(batch(range(start, start + size))))
            start += size
        assert [group.num_rows for group in groups] == [10] * (start // 10)
        groups += list(gathered.rest())
        assert [n for group in groups for n in group.column("n").to_pylist()] == list(range(start))
        assert list(gathered.rest()) == []


def test_long_rows_do_not_wait_for_a_row_group() -> None:
    with mock.patch.object(storing, "GATHERED_BYTES", 1000):
        gathered = Gathered()
        assert list(gathered.add(batch(range(5)))) == []
        [group] = gathered.add(batch(range(5, 10), "x" * 300))
        assert group.column("n").to_pylist() == list(range(10))


def test_a_file_is_stored_in_whole_row_groups_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 2 * ROW_GROUP_ROWS + 100
    log = tmp_path / "vpc.log"
    log.write_text("".join(LINE.format(n // 250 % 250, n % 250, 1024 + n % 60_000) for n in range(count)))
    for told in (f"{count:,} rows from 1 source", f"{count:,} were there already"):
        assert run_import(log, "--into", tmp_path / "db") == 0
        assert told in capsys.readouterr().err

    with duckdb.connect(str(tmp_path / "db"), read_only=True) as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT record_id) FROM flows").fetchone()
        groups = connection.execute(
            "SELECT sum(count) FROM pragma_storage_info('flows') WHERE column_name = 'record_id' AND segment_type = 'UBIGINT'"
            " GROUP BY row_group_id ORDER BY row_group_id"
        ).fetchall()
    assert found == (count, count)
    assert [rows for (rows,) in groups] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 100]


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\n\n", b"d" * 7]), max_size=20), st.integers(1, 12))
def test_whole_lines_are_read_and_nothing_is_left_out(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    stream, found = Stream("x", io.BytesIO(data)), b""
    while stream.peek(1):
        lines = stream.read_lines(size)
        if lines:
            assert len(lines) <= size
            assert lines.endswith(b"\n") or found + lines == data
            found += lines
        else:  # the next line is longer than that
            assert b"\n" not in stream.peek(size)
            assert len(stream.peek(size + 1)) > size
            found += stream.read_line(random.Random(len(data)).randrange(1, 30))
    assert found == data
    assert stream.read_lines(size) == b""

"""What goes back to the machine: code that is not used, and blocks that DuckDB was lent at an opening."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from collector.store.database import Store
from collector.store.memory import WRITING_BYTES, unwritten_mappings

MB = 1_000_000

_SMAPS = """\
55d0c0a00000-55d0c0b00000 r--p 00000000 fe:00 1234                       /usr/bin/python3.11
Size:               1024 kB
Rss:                 800 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55d0c0b00000-55d0c0d00000 r-xp 00100000 fe:00 1234                       /opt/a library/with a space.so
Size:               2048 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
55d0c0d00000-55d0c0e00000 r--p 00300000 fe:00 1234                       /usr/lib/relocated.so
Size:               1024 kB
Anonymous:             4 kB
VmFlags: rd mr mw me ac sd
55d0c0e00000-55d0c0f00000 rw-p 00400000 fe:00 1234                       /usr/lib/data.so
Anonymous:             0 kB
55d0c2000000-55d0c2100000 rw-p 00000000 00:00 0                          [heap]
Anonymous:             0 kB
55d0c3000000-55d0c3100000 r--p 00000000 00:00 0
Anonymous:             0 kB
55d0c4000000-55d0c4100000 r--p 00000000 00:00 0                          [vvar]
Anonymous:             0 kB
55d0c5000000-55d0c5100000 r--s 00000000 fe:00 77                         /run/shared.cache
Anonymous:             0 kB
"""


def test_only_pages_that_are_as_in_their_file_are_given_back() -> None:
    assert unwritten_mappings(_SMAPS) == [
        (0x55D0C0A00000, 0x100000),
        (0x55D0C0B00000, 0x200000),
    ]


_GIVE_BACK = """\
import duckdb, pyarrow, pyarrow.compute
from collector.store.memory import give_back_code, mapped_bytes

before = mapped_bytes()
give_back_code()
after = mapped_bytes()
[(answer,)] = duckdb.sql("SELECT sum(i * 2) FROM range(1000) t(i)").fetchall()
print(before, after, int(answer), pyarrow.compute.sum(pyarrow.array([1, 2, 3])).as_py())
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is mapped")
def test_code_comes_back_by_itself() -> None:
    """In a process of its own: whatever else runs here needs its code now."""
    said = subprocess.run([sys.executable, "-c", _GIVE_BACK], capture_output=True, text=True, check=True).stdout
    before, after, *answers = map(int, said.split())

    assert before > 30 * MB
    assert after < before / 3
    assert answers == [999_000, 6]


def _limit(cursor: duckdb.DuckDBPyConnection) -> str:
    [(limit,)] = cursor.execute("SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'").fetchall()
    return str(limit)


def test_a_file_that_was_opened_is_left_with_little_at_once_and_again_after_a_reopening(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb", memory_bytes=8 * WRITING_BYTES) as store:
        opened = _limit(store.cursor())
        store.lower_memory()
        lowered = _limit(store.cursor())
        store.reopen()
        reopened = _limit(store.cursor())
        store.lower_memory()

        assert opened == reopened == "384.0 MiB"
        assert lowered == _limit(store.cursor()) == "48.0 MiB"


def test_what_a_question_was_lent_stays_a_while_for_the_next(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb", memory_bytes=8 * WRITING_BYTES) as store:
        store.lower_memory()
        with store.memory.asking(store.cursor) as cursor:
            cursor.execute("SELECT 1")
        store.lower_memory()

        assert _limit(store.cursor()) == "384.0 MiB"

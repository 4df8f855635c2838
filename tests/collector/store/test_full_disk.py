"""A disk that is full: requests fail, nothing acknowledged is lost, and writing goes on once there is room."""

import subprocess
import sys
from pathlib import Path

import pytest

from collector.store.database import Store
from collector.store.reader import Reader

FILL = """
import os, resource, signal, sys
from pathlib import Path
from collector.errors import StoreError
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row

def write(writer):
    rows = [make_row("spans", name=os.urandom(200).hex()) for _ in range(50)]
    writer.append({"spans": make_batch("spans", *rows)}).result(30)

writer = Writer(Store.open(Path(sys.argv[1])))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
room = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, room))
acknowledged = 0
try:
    while acknowledged < 100_000:
        write(writer)
        acknowledged += 50
except StoreError as e:
    print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
write(writer)
print(acknowledged + 50, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "evidence.duckdb"
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=False, timeout=100
    )

    refusal, acknowledged = done.stdout.splitlines()
    assert "not written" in refusal
    assert "File too large" in refusal
    with Store.open_read_only(path) as store:
        [row] = Reader(store).query("SELECT count(*) AS n FROM spans").to_pylist()
    assert row["n"] == int(acknowledged)

"""The benchmark of questions runs as a script, on a file that it builds, and asks what it says."""

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

SCRIPT = Path(__file__).with_name("bench_queries.py")


@pytest.mark.slow
def test_a_small_run_answers_every_question(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--spans", "20000", "--folder", str(tmp_path), "--runs", "2"]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=tmp_path, timeout=110).stdout)

    assert report["data"]["spans"] >= 20_000
    assert report["data"]["services"] == 40
    assert len(report["questions"]) > 30
    assert report["questions"]["trace by id"]["rows_p50"] > 1
    assert report["questions"]["search: newest"]["rows_p50"] >= 500
    assert report["questions"]["search: absent attribute"]["rows_p50"] == 0
    [stored] = tmp_path.glob("*.duckdb")
    connection = duckdb.connect(str(stored), read_only=True)
    [derived] = connection.execute(
        "SELECT (SELECT count(*) FROM trace_arrivals), (SELECT count(*) FROM attribute_keys)"
    ).fetchall()
    connection.close()
    assert derived[0] > 1000
    assert derived[1] == 6

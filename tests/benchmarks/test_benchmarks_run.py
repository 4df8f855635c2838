"""Every benchmark of the collector still runs, counts what it sent, and says what it measured; how fast, no test asks."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.witness_lines import FORMS

HERE = Path(__file__).parent

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(300)]  # a fifth of it where nothing else runs


def report_of(script: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_run_hands_on_what_a_benchmark_prints_and_says_on_what_machine(tmp_path: Path) -> None:
    report = report_of("run.py", "--quick", "--only", "decode", "--out", str(tmp_path / "bench.json"))

    assert json.loads((tmp_path / "bench.json").read_text()) == report
    assert report["quick"] is True
    assert report["machine"]["versions"]["duckdb"]
    assert set(report["decode"]["spans_per_cpu_s"]) == {
        "ours_in_groups",
        "ours_one_by_one",
        "peer_python_dicts",
        "peer_python_dicts_to_arrow",
    }
    assert all(rate > 0 for rate in report["decode"]["spans_per_cpu_s"].values())


def test_run_fails_where_there_is_no_such_benchmark() -> None:
    command = [sys.executable, str(HERE / "run.py"), "--only", "decoed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "bench_decode.py" in done.stderr


def test_calls() -> None:
    report = report_of("bench_calls.py", "--quick")

    assert report["data"]["spans"] >= 20_000
    assert report["data"]["proxy_records"] == 20_000
    # One hour of the six that the file covers.
    assert 0.1 < report["data"]["spans_asked"] / report["data"]["spans"] < 0.3
    assert 0.1 < report["data"]["proxy_records_asked"] / report["data"]["proxy_records"] < 0.3
    for question in ("calls", "shadow"):
        answer = report["questions"][question]
        assert answer["calls"] > 1_000
        assert answer["peak_mb"] > 0
        for turn in ("first", "again"):
            assert 0 < answer[turn]["cpu_seconds_in_queries"] <= answer[turn]["cpu_seconds"]


def test_ingest() -> None:
    report = report_of("bench_ingest.py", "--quick")

    for part in ("grpc", "http", "json", "small"):
        for receiver in ("ours", "rotel"):
            assert report[part][receiver]["spans_per_s"] > 0, part
            assert report[part][receiver]["refused_and_retried"] == 0, part
        assert report[part]["ratio_of_medians"] > 0
        assert report[part]["inputs"]["requests"] == 12
    assert report["http"]["of_our_grpc"] > 0
    assert report["half_rate"]["ours"]["ack_ms_p99"] > 0
    # A warm-up of one request, one round of twelve, by three protocols; the same of small requests; ten at least at half rate.
    assert report["spans_in_the_file"]["acknowledged"] >= 3 * 13 * 512 + 13 * 10 + 10 * 512
    assert report["spans_in_the_file"]["stored"] == report["spans_in_the_file"]["acknowledged"]


def test_readers() -> None:
    report = report_of("bench_readers.py", "--quick")

    assert report["visibility"]["probes"] > 0
    assert report["visibility"]["seen_ms"]["p50_ms"] >= report["visibility"]["of_that_acknowledged_ms"]["p50_ms"] > 0
    questions = set(report["queries"]) - {"all", "spans_in_the_file"}
    assert len(questions) == 4
    assert all(report["queries"][name]["p95_ms"] > 0 for name in questions)
    assert report["spans_per_s"]["beside_queries"] > 0


def test_detectors(tmp_path: Path) -> None:
    report = report_of("bench_detectors.py", "--quick", "--folder", str(tmp_path))

    assert report["data"]["spans"] >= 50_000
    assert report["rhythm"]["scored"] == report["rhythm"]["pairs"] == 1_000
    assert set(report["detectors"]) == {"scan latency", "scan egress", "scan shadow", "rank", "cost", "egress"}
    for by_window in report["detectors"].values():
        for figures in (by_window["hour"], by_window["day"]):
            assert figures["first"]["cpu_s"] > 0
            assert figures["peak_mb"] > 50


def test_watch() -> None:
    report = report_of("bench_watch.py", "--quick")

    assert set(report["incidents"]) == {"rogue", "bypass", "egress", "slow"}
    [run] = report["runs"]
    told = {name: seconds for name, seconds in run["seconds"].items() if seconds is not None}
    assert {"rogue", "bypass", "egress"} <= set(told), (
        "half a minute of load may be too little for latency, but not for proofs"
    )
    assert all(0 < seconds < 90 for seconds in told.values())


def test_footprint() -> None:
    report = report_of("bench_footprint.py", "--quick")

    assert report["disk"]["spans"] == 20 * 512
    # Ids and hashes are 64 random bytes a span, which nothing compresses.
    assert report["disk"]["zstd_parquet_bytes_per_span"] > 64
    assert report["disk"]["ours_bytes_per_span"] > 64
    assert report["idle"]["memory_mb"]["VmRSS"] > 20
    assert report["ready_on_a_new_file"]["median_s"] > 0
    assert report["ready_on_the_filled_file"]["median_s"] > 0


def test_witnesses() -> None:
    report = report_of("bench_witnesses.py", "--quick")

    assert set(report["formats"]) == set(FORMS)
    assert all(figures["lines_per_cpu_s"] > 0 for figures in report["formats"].values())
    assert report["import"]["lines_per_s"] > 0


def test_stamps() -> None:
    report = report_of("bench_stamps.py", "--quick")

    ours = {"unsigned", "hmac", "ed25519", "unsigned, packed", "hmac, packed"}
    for transport in ("grpc", "grpc.aio", "http"):
        for size in ("200", "2000", "64000", "1000000"):
            part = report["by_transport"][transport][size]
            sidecars = {"sidecars"} if transport == "grpc" else set()
            assert set(part["per_call"]) == {"bare", "opentelemetry"} | ours | sidecars
            assert all(way["cpu_us"] > 0 and way["wall_us"] > 0 for way in part["per_call"].values())
            assert set(part["added_to_opentelemetry"]) == ours
    assert set(report["by_transport"]["grpc"]["2000"]["ours_of_what_sidecars_add"]) == ours
    assert report["metadata_bytes_added"]["hmac"] > report["metadata_bytes_added"]["unsigned"] > 0


def test_soak_of_twenty_seconds_samples_every_second_and_draws(tmp_path: Path) -> None:
    report = report_of("soak.py", "--minutes", "0.33", "--rate", "5000", "--out", str(tmp_path / "soak.json"))

    times = [point["seconds"] for point in report["curve"]]
    assert len(times) >= 20
    assert times[0] < 1
    assert all(later > earlier for earlier, later in pairwise(times))
    assert all(20 < point["anonymous_mb"] < point["rss_mb"] for point in report["curve"])
    assert report["curve"][-1]["cpu_seconds"] > report["curve"][0]["cpu_seconds"]
    assert report["memory"]["peak_rss_mb"] == max(point["rss_mb"] for point in report["curve"])
    assert report["memory"]["kernel_peak_rss_mb"] >= report["memory"]["median_rss_mb"]
    assert report["spans_in_the_file"]["stored"] == report["load"]["spans"] > 0
    assert json.loads((tmp_path / "soak.json").read_text()) == report
    ET.fromstring((tmp_path / "soak.svg").read_text())

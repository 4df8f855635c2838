"""`provenance import` of other witnesses' files: once, with what could not be read, from gzip and from the middle of anything."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from collector.exchange import witness_files
from collector.exchange.sniff import sniff
from tests.collector.exchange.exchange_helpers import rows, run_import
from tests.collector.witnesses.test_witness_lines import (
    CONNTRACK,
    HUBBLE,
    ISTIO,
    LINKERD,
    VPCFLOW,
    ZEEK,
    ZEEK_HEADER,
    ZTUNNEL,
)

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "sleep-5f4d9c7b9-abcde",
        "namespace": "foo",
        "labels": {"pod-template-hash": "5f4d9c7b9", "sidecar.istio.io/inject": "true", "other": "x"},
        "annotations": {"traffic.sidecar.istio.io/excludeOutboundPorts": "8080", "unrelated": "y"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "sleep-5f4d9c7b9"}],
    },
    "spec": {
        "serviceAccountName": "sleeper",
        "containers": [
            {"name": "app"},
            {"name": "istio-proxy", "env": [{"name": "TRUST_DOMAIN", "value": "example.org"}]},
        ],
    },
    "status": {
        "podIP": "10.44.1.23",
        "podIPs": [{"ip": "10.44.1.23"}, {"ip": "fd00::1"}],
        "startTime": "2026-01-01T00:00:00Z",
    },
}


def pods(*items: object) -> str:
    return json.dumps({"apiVersion": "v1", "items": list(items), "kind": "List", "metadata": {}}, indent=1)


def test_files_of_every_witness_go_where_they_belong_and_only_once(tmp_path: Path) -> None:
    contents = {
        "istio.log": ISTIO, "linkerd.log": LINKERD, "ztunnel.log": ZTUNNEL, "hubble.json": HUBBLE,
        "conn.log": ZEEK_HEADER + ZEEK, "vpc.log": VPCFLOW, "conntrack.txt": CONNTRACK, "pods.json": pods(POD),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_text(content + "\n")
    (tmp_path / "conn.log").rename(tmp_path / "plain")
    (tmp_path / "conn.log.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    (tmp_path / "plain").unlink()
    files = sorted(p for p in tmp_path.iterdir())
    db = tmp_path / "db"

    for _ in range(2):
        assert run_import(*files, "--into", db) == 0

    count = "(SELECT count(*) FROM {}) AS {}".format
    counted = rows(
        db, f"SELECT {', '.join(count(t, t) for t in ('proxy_records', 'flows', 'workloads', 'ingest_errors'))}"
    )
    assert counted == [{"proxy_records": 2, "flows": 5, "workloads": 2, "ingest_errors": 0}]


def test_who_an_address_is(tmp_path: Path) -> None:
    job = {
        "kind": "Pod",
        "metadata": {"name": "job-1", "namespace": "foo"},
        "spec": {"hostNetwork": True},
        "status": {"podIP": "10.0.0.9"},
    }
    (tmp_path / "pods.json").write_text(pods(POD, job, {"kind": "Service"}, 7))
    os.utime(tmp_path / "pods.json", ns=(5 * 10**18 // 3, 5 * 10**18 // 3))
    assert run_import(tmp_path / "pods.json", "--into", tmp_path / "db") == 0

    first, *_, last = rows(tmp_path / "db", "SELECT * FROM workloads ORDER BY address DESC")
    assert (first["service_name"], first["pod"], first["mesh"]) == ("sleep", "sleep-5f4d9c7b9-abcde", "istio")
    assert first["principal"] == "spiffe://example.org/ns/foo/sa/sleeper"
    assert first["first_seen_unix_nano"] == 1767225600 * 10**9
    assert first["last_seen_unix_nano"] == 5 * 10**18 // 3
    kept = {"sidecar.istio.io/inject": "true", "traffic.sidecar.istio.io/excludeOutboundPorts": "8080"}
    assert dict(first["attributes"]) == kept
    assert (last["address"], last["service_name"], last["mesh"], last["host_network"]) == (
        "10.0.0.9",
        "job-1",
        "none",
        True,
    )
    [error] = rows(tmp_path / "db", "SELECT reason, count FROM ingest_errors")
    assert error == {"reason": "pod: not a pod (first at pod 3)", "count": 2}


def test_bad_lines_are_told_with_their_number_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(f"{ISTIO}\n".encode() + b"\xff\xfe\nbad\n\0\nbad\n" + b"x" * 1_000_000 + b"\n" + ISTIO.encode())
    assert run_import(log, "--into", tmp_path / "db", "--service", "shop", "--instance", "pod-7") == 0

    told = capsys.readouterr().err
    assert f"{log}: 1 skipped: line: not UTF-8 (first at line 2)" in told
    assert "line too long (first at line 6)" in told
    assert "2 rows from 1 source (istio)" in told
    found = rows(tmp_path / "db", "SELECT service_name, service_instance_id, source FROM proxy_records")
    assert found == [{"service_name": "shop", "service_instance_id": "pod-7", "source": str(log)}] * 2
    assert rows(tmp_path / "db", "SELECT sum(count)::BIGINT AS n FROM ingest_errors") == [{"n": 5}]


@pytest.mark.parametrize("block_bytes", [7, 1000])
def test_blocks_are_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    lines = [ISTIO.replace("/status/418", f"/{i}") for i in range(5)]
    log = tmp_path / "a.log"
    log.write_bytes(b"\xef\xbb\xbf" + "\n".join([*lines[:3], "x" * 300_000, *lines[3:]]).encode())
    monkeypatch.setattr(witness_files, "BLOCK_BYTES", block_bytes)
    for _ in range(2):
        assert run_import(log, "--into", tmp_path / "db") == 0
        monkeypatch.undo()  # ids do not depend on where blocks were cut

    assert [row["path"] for row in rows(tmp_path / "db", "SELECT path FROM proxy_records ORDER BY path")] == [
        f"/{i}" for i in range(5)
    ]
    assert rows(tmp_path / "db", "SELECT DISTINCT reason FROM ingest_errors") == [
        {"reason": "line: line too long (first at line 4)"}
    ]


@pytest.mark.parametrize(
    ("argv", "content", "message"),
    [
        (["--service", "x"], ZEEK_HEADER + ZEEK, "is zeek: --service is about access logs"),
        (["--log-format", "[%START_TIME%%PROTOCOL%]"], ISTIO, "nothing stands between"),
        (["--format", "zeek", "--log-format", "[%START_TIME%]"], ZEEK, "it says nothing of zeek"),
        (["--format", "zeek"], LINKERD, "--format zeek, but it looks like linkerd"),
        ([], "nothing known\n", "not recognised"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], content: str, message: str
) -> None:
    (tmp_path / "a").write_text(content)
    assert run_import(tmp_path / "a", "--into", tmp_path / "db", *argv) == 2
    assert message in capsys.readouterr().err


def test_a_running_collector_takes_no_rows_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_text(ISTIO)
    assert run_import(tmp_path / "a", "--into", "http://127.0.0.1:9") == 2
    assert "have the collector follow the log with --tail" in capsys.readouterr().err


def test_pods_are_recognised_in_every_layout() -> None:
    for document in (pods(POD), json.dumps(POD), json.dumps({"kind": "PodList", "apiVersion": "v1", "items": []})):
        shape = sniff("x", document.encode())
        assert shape is not None
        assert shape.format == "pods"

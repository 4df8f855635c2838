"""Following logs of every witness: headers outlive a restart, rows go where they belong."""

import re
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pytest

from collector.commands.collect import log_files
from collector.errors import ConfigError
from collector.settings import Settings, tail_parts
from collector.witnesses.follow import Follower, LogFile, Position, positions_from
from collector.witnesses.reading import FORMATS, UNKNOWN_SERVICE, Format
from tests.collector.witnesses.test_witness_lines import CONNTRACK, HUBBLE, LINKERD, VPCFLOW, ZEEK, ZEEK_HEADER, ZTUNNEL

TABLES = {"linkerd": "proxy_records"}


class Kept:
    """A writer that keeps what is committed."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, object]]] = {}
        self.positions: dict[str, Position] = {}

    def append(self, batches: Mapping[str, pa.RecordBatch]) -> Future[None]:
        for table, batch in batches.items():
            self.rows.setdefault(table, []).extend(batch.to_pylist())
        self.positions |= positions_from(batches["access_logs"].to_pylist())
        done: Future[None] = Future()
        done.set_result(None)
        return done


def read_once(path: Path, format_: Format, store: Kept) -> None:
    """As a collector does that is started and stopped: closing reads what is there by now."""
    Follower([LogFile(path, "checkout", None, format_)], store, dict(store.positions)).start().close()


@pytest.mark.parametrize(
    ("format_", "line"),
    [("linkerd", LINKERD), ("ztunnel", ZTUNNEL), ("hubble", HUBBLE), ("vpcflow", VPCFLOW), ("conntrack", CONNTRACK)],
)
def test_lines_of_every_witness_are_followed(format_: Format, line: str, tmp_path: Path) -> None:
    log, store = tmp_path / "log", Kept()
    log.write_text(line + "\n")
    read_once(log, format_, store)
    log.write_text(f"{line}\n{line}\nbad\n")
    read_once(log, format_, store)

    rows = store.rows[TABLES.get(format_, "flows")]
    assert len({row["record_id"] for row in rows}) == len(rows) == 2
    assert {row["source"] for row in rows} == {str(log)}


@pytest.mark.parametrize("rotation", ["none", "rename and create", "copy and truncate"])
def test_zeeks_header_outlives_a_restart_and_a_rotation(rotation: str, tmp_path: Path) -> None:
    log, store = tmp_path / "conn.log", Kept()
    log.write_text(ZEEK_HEADER + ZEEK + "\n")
    read_once(log, "zeek", store)
    with log.open("a") as file:
        file.write(ZEEK.replace("61843", "2") + "\n")
    if rotation == "rename and create":
        log.rename(tmp_path / "conn.log.1")
        log.write_text(ZEEK_HEADER.replace("\tuid\t", "\tother\t") + ZEEK.replace("61843", "3") + "\n")
    elif rotation == "copy and truncate":
        (tmp_path / "conn.log.1").write_bytes(log.read_bytes())
        log.write_text(ZEEK_HEADER.replace("\tuid\t", "\tother\t") + ZEEK.replace("61843", "3") + "\n")
    read_once(log, "zeek", store)
    read_once(log, "zeek", store)

    assert "ingest_errors" not in store.rows
    ports = [row["source_port"] for row in store.rows["flows"]]
    assert ports == ([61843, 2] if rotation == "none" else [61843, 2, 3])


def test_settings_know_the_formats_that_are_read() -> None:
    for format_ in FORMATS:
        assert tail_parts(f"{format_}:/var/log/x:y").path == "/var/log/x:y"


def test_what_a_tail_says() -> None:
    settings = Settings(db=Path("x"), tail=("istio@checkout/inbound:/a", "zeek:/b"), access_log=("cart=/c",))

    assert [(log.format, log.service_name, log.direction, str(log.path)) for log in log_files(settings)] == [
        ("envoy", "cart", None, "/c"),
        ("istio", "checkout", "inbound", "/a"),
        ("zeek", UNKNOWN_SERVICE, None, "/b"),
    ]


def test_a_file_is_followed_once() -> None:
    with pytest.raises(ConfigError, match="--tail: /a is given twice"):
        log_files(Settings(db=Path("x"), tail=("zeek:/a", "hubble:/a")))


@pytest.mark.parametrize("text", ["zeek", "zeek:", "pcap:/a", "zeek@:/a", "istio@a/sideways:/a", "/a"])
def test_a_tail_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        tail_parts(text)

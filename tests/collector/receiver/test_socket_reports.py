"""POST /v1/sockets: committed before it is answered, and refused in so many words."""

import gzip
import json

import httpx
import pytest

from collector.errors import ConfigError, StoreError, StoreFullError
from collector.receiver.counters import Counters
from collector.receiver.credentials import needed
from collector.receiver.http_app import create_app
from collector.receiver.ingest import Ingest
from collector.receiver.socket_reports import MAX_REPORT_BYTES, SOCKETS_PATH, SocketReports
from collector.witnesses.sockets_send import Outbox, Sender
from collector.witnesses.sockets_watch import Identity, Report
from tests.collector.receiver.receiver_fakes import FakeWriter, http_server

WATCH = {"addresses": ["10.1.0.7"], "since_unix_nano": 1, "until_unix_nano": 2, "samples": 1, "proxy_found": True}
ROW = {
    "record_id": 2**64 - 1,
    "protocol": "tcp",
    "direction": "outbound",
    "local_address": "10.1.0.7",
    "local_port": 40000,
    "remote_address": "10.1.0.9",
    "remote_port": 8080,
    "state": "ESTABLISHED",
    "capture": "bypassed",
    "first_seen_unix_nano": 1,
    "last_seen_unix_nano": 2,
}
REPORT = {"source": "web-0", "service_name": "web", "service_instance_id": "web-0", "watch": WATCH, "sockets": [ROW]}


def application(writer, **options):
    counters = Counters()
    reports = SocketReports(writer, counters, **options)
    return create_app(ingest=Ingest(writer), extra_routes=reports.routes(), counters=counters)


async def post(writer, body, options=None, **headers):
    transport = httpx.ASGITransport(application(writer, **(options or {})))
    named = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    async with httpx.AsyncClient(transport=transport, base_url="http://collector") as client:
        return await client.post(SOCKETS_PATH, content=body, headers=named)


async def test_a_report_is_committed_and_acknowledged():
    writer = FakeWriter()
    answer = await post(writer, gzip.compress(json.dumps(REPORT).encode()), content_encoding="gzip")
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1, "rejected": {}})
    [row] = writer.rows("sockets")
    assert (row["record_id"], row["capture"], row["source"]) == (2**64 - 1, "bypassed", "web-0")
    assert len(writer.rows("socket_watches")) == 1


async def test_good_rows_count_beside_bad_ones_which_are_recorded():
    writer = FakeWriter()
    answer = await post(writer, json.dumps(REPORT | {"sockets": [ROW, ROW | {"record_id": 2, "local_port": -1}]}))
    reason = "`local_port` is not a whole number from 0 to 65535"
    assert answer.json() == {"accepted": 1, "rejected": {reason: 1}}
    assert writer.errors() == {reason: 1}
    assert {e["source"] for e in writer.rows("ingest_errors")} == {"sockets:web-0"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (json.dumps(REPORT | {"source": ""}), {}, 400),
        (b"not gzip", {"content_encoding": "gzip"}, 400),
        (b" " * (MAX_REPORT_BYTES + 1), {}, 413),
        (gzip.compress(b" " * (MAX_REPORT_BYTES + 1)), {"content_encoding": "gzip"}, 413),
        (json.dumps(REPORT), {"content_type": "text/plain"}, 415),
        (json.dumps(REPORT), {"content_encoding": "br"}, 415),
    ],
)
async def test_what_is_no_report_is_refused(body, headers, status):
    writer = FakeWriter()
    answer = await post(writer, body, **headers)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert not writer.appended


@pytest.mark.parametrize(
    "writer",
    [FakeWriter(refusal=StoreFullError("full")), FakeWriter(failure=StoreError("disk")), FakeWriter(held=True)],
)
async def test_what_the_store_does_not_take_is_to_be_sent_again(writer):
    answer = await post(writer, json.dumps(REPORT), {"commit_timeout_s": 0.01})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_reports_take_a_write_token():
    assert needed(SOCKETS_PATH) == "write"


def test_a_witness_delivers_over_a_real_connection():
    writer = FakeWriter()
    report = Report(Identity("web-0", "web"), WATCH, (ROW,))
    with http_server(application(writer)) as port:
        sender = Sender(f"http://127.0.0.1:{port}")
        box = Outbox(sender.post)
        for _ in range(2):
            box.put(report)
        box.deliver(0.0)
        sender.close()
    assert (len(box), box.lost, box.complaint) == (0, 0, "")
    assert len(writer.rows("sockets")) == 2
    answer = Sender(f"http://127.0.0.1:{port}").post(b"{}")
    assert answer.is_temporary
    assert f"127.0.0.1:{port}" in answer.reason


@pytest.mark.parametrize(
    "url", ["collector:4318", "ftp://collector", "http://", "http://h:99999", "http://h:1/v1/sockets"]
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="--collector"):
        Sender(url)


def test_the_token_is_read_each_time(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("# ours\nfirst-token-0123456789\n")
    sender = Sender("http://127.0.0.1:1", token_file=file)
    assert sender._authorization() == {"authorization": "Bearer first-token-0123456789"}
    file.write_text("second-token-0123456789\n")
    assert sender._authorization() == {"authorization": "Bearer second-token-0123456789"}
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no token in it"):
        Sender("http://127.0.0.1:1", token_file=file)

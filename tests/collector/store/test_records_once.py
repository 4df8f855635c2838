"""A proxy's record that is sent twice is stored once."""

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from collector.otlp.access_logs import decode_access_logs
from collector.receiver.signals import AccessLogs
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row

DEADLINE = 20
LINE = '[2016-04-15T20:17:00.310Z] "POST {} HTTP/2" 204 - 154 0 226 100 "10.0.35.28" "nsq2http" "cc21d9b0" "a" "10.0.2.1:80"'


def access_log(*paths, sender="sleep"):
    """A request with a line a path; equal lines are equal to the last bit."""
    message = ExportLogsServiceRequest()
    resource_logs = message.resource_logs.add()
    resource_logs.resource.attributes.add(key="service.name").value.string_value = sender
    records = resource_logs.scope_logs.add().log_records
    for path in paths:
        records.add(time_unix_nano=1_460_751_420_310_000_001).body.string_value = LINE.format(path)
    return message.SerializeToString()


def rows(path):
    with Store.open_read_only(path) as store:
        found = store.cursor().execute("SELECT path, service_name FROM proxy_records ORDER BY ALL").fetchall()
    return [(where, whose) for where, whose in found]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evidence.duckdb"


def send(path, *payloads, together=False):
    with Store.open(path) as store, Writer(store) as writer:
        logs = AccessLogs(writer)
        if together:
            accepted = [logs.logs(payload) for payload in payloads]
            for one in accepted:
                one.committed.result(DEADLINE)
        else:
            for payload in payloads:
                logs.logs(payload).committed.result(DEADLINE)


@pytest.mark.parametrize("together", [True, False])
def test_a_log_that_is_sent_again_changes_nothing(path, together):
    send(path, access_log("/a", "/b"), access_log("/c"), access_log("/a", "/b"), together=together)
    assert rows(path) == [("/a", "sleep"), ("/b", "sleep"), ("/c", "sleep")]


def test_a_log_that_is_sent_again_after_a_restart_changes_nothing(path):
    send(path, access_log("/a", "/a"))
    send(path, access_log("/a", "/a"), access_log("/b"))
    assert rows(path) == [("/a", "sleep"), ("/a", "sleep"), ("/b", "sleep")]


def test_equal_lines_of_one_request_and_of_two_senders_are_different_records(path):
    send(path, access_log("/a", "/a"), access_log("/a", sender="wake"))
    assert rows(path) == [("/a", "sleep"), ("/a", "sleep"), ("/a", "wake")]


def test_records_of_a_transaction_that_failed_are_stored_when_they_come_again(path):
    records = decode_access_logs(access_log("/a"), received_unix_nano=1).batches["proxy_records"]
    bad = make_batch("ingest_errors", make_row("ingest_errors") | {"source": None})
    with Store.open(path) as store, Writer(store) as writer:
        failed = writer.append({"proxy_records": records, "ingest_errors": bad})
        assert failed.exception(DEADLINE) is not None
        writer.append({"proxy_records": records}).result(DEADLINE)
    assert rows(path) == [("/a", "sleep")]

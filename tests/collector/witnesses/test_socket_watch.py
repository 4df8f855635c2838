"""What a witness remembers and reports; and what a report may be when it arrives."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import DecodeError
from collector.schema import arrow_schema
from collector.witnesses.sockets_judge import PROXIES
from collector.witnesses.sockets_report import MAX_SOCKETS, decode_report
from collector.witnesses.sockets_send import Answer, Outbox
from collector.witnesses.sockets_watch import FORGET_NS, MAX_ROWS, NS_PER_S, Identity, Look, Watch
from tests.collector.witnesses.socket_factories import make_socket, proxy_end, sidecar, snapshot

IDENTITY = Identity("web-0", "web", "web-0")
T0 = 1_700_000_000 * NS_PER_S


def make_watch():
    return Watch(IDENTITY, PROXIES["istio"], interval_ns=NS_PER_S)


def look(watch, at, *sockets, time_wait=None, confirm=True):
    table = snapshot(*sockets)
    second = table if confirm and watch.suspects(table) else None
    watch.observe(Look(T0 + at * NS_PER_S, table, second, time_wait))


def rows(watch, at):
    return [r for r in watch.report(T0 + at * NS_PER_S).sockets if r["state"] != "LISTEN"]


def test_a_verdict_stays_with_its_socket():
    watch, app = make_watch(), make_socket(cookie=1)
    look(watch, 0, app, proxy_end(app), *sidecar())
    [open_row] = rows(watch, 0)
    ended = make_socket(cookie=1, state="TIME_WAIT", uid=None, cgroup_id=None, expires_ms=60_000)
    look(watch, 1, *sidecar(), time_wait=(ended,))
    [row] = rows(watch, 1)
    assert (row["record_id"], row["state"], row["capture"], row["uid"]) == (
        open_row["record_id"],
        "TIME_WAIT",
        "captured",
        1000,
    )
    assert row["first_seen_unix_nano"] == T0


def test_a_bypass_stays_a_bypass_and_needs_its_second_dump():
    watch, app = make_watch(), make_socket(cookie=1)
    look(watch, 0, app, *sidecar(), confirm=False)
    assert [r["capture"] for r in rows(watch, 0)] == [None]
    look(watch, 1, app, *sidecar())
    assert [r["capture"] for r in rows(watch, 1)] == ["bypassed"]
    look(watch, 2, make_socket(cookie=1, state="CLOSE_WAIT"), *sidecar())
    assert [(r["state"], r["capture"]) for r in rows(watch, 2)] == [("CLOSE_WAIT", "bypassed")]
    assert not watch.suspects(snapshot(app, *sidecar())), "what is known needs no second dump"


def test_a_socket_once_captured_is_never_accused_later():
    """The proxy's end of a connection that was idle for days may vanish without a word."""
    watch, app = make_watch(), make_socket(cookie=1)
    look(watch, 0, app, proxy_end(app), *sidecar())
    look(watch, 1, app, *sidecar())
    assert [r["capture"] for r in rows(watch, 1)] == ["captured"]


def test_a_short_call_is_dated_by_its_timer():
    watch = make_watch()
    ended = make_socket(cookie=5, state="TIME_WAIT", uid=None, expires_ms=48_000)
    look(watch, 100, *sidecar(), time_wait=(ended,))
    [row] = rows(watch, 100)
    assert (row["first_seen_unix_nano"], row["capture"]) == (T0 + 88 * NS_PER_S, None)


def test_a_port_used_again_is_another_connection_where_cookies_are_not_known():
    watch = make_watch()
    app = make_socket(cookie=None)
    look(watch, 0, app, proxy_end(app), *sidecar())
    look(watch, 1, *sidecar(), time_wait=(make_socket(cookie=None, state="TIME_WAIT", uid=None, expires_ms=60_000),))
    [first] = rows(watch, 1)
    look(watch, 2, app, *sidecar())
    [again] = rows(watch, 2)
    assert first["record_id"] != again["record_id"]
    assert (first["capture"], again["capture"]) == ("captured", "bypassed")


def test_what_is_reported_is_told_again_only_when_it_changed_or_goes_on():
    watch, app = make_watch(), make_socket(cookie=1)
    look(watch, 0, app, *sidecar())
    assert len(rows(watch, 0)) == 1
    look(watch, 1, app, *sidecar())
    assert (rows(watch, 1), watch.has_news) == ([], False)
    look(watch, 31, app, *sidecar())
    [row] = rows(watch, 31)
    assert row["last_seen_unix_nano"] == T0 + 31 * NS_PER_S


def test_periods_join_without_a_gap_and_forgotten_sockets_leave():
    watch = make_watch()
    look(watch, 0, make_socket(cookie=1), *sidecar())
    first = watch.report(T0 + 5 * NS_PER_S).watch
    look(watch, 6, *sidecar())
    second = watch.report(T0 + 9 * NS_PER_S).watch
    assert first["until_unix_nano"] == second["since_unix_nano"]
    assert (first["samples"], first["proxy_found"], first["addresses"]) == (1, True, ["10.1.0.7"])
    watch.report(T0 + FORGET_NS + 100 * NS_PER_S)
    look(watch, 300, make_socket(cookie=1), *sidecar())
    assert [r["first_seen_unix_nano"] for r in rows(watch, 300)] == [T0 + 300 * NS_PER_S]


def test_more_than_a_report_holds_comes_with_the_next():
    watch = make_watch()
    ended = tuple(
        make_socket(cookie=n, local_port=1024 + n, state="TIME_WAIT", uid=None, expires_ms=1000)
        for n in range(MAX_ROWS + 7)
    )
    watch.observe(Look(T0, snapshot(*sidecar(), ports=(1024, 65535)), None, ended))
    reports = [watch.report(T0 + n).sockets for n in (1, 2, 3)]
    assert [len(r) for r in reports] == [MAX_ROWS, 9, 0]
    assert len({row["record_id"] for r in reports for row in r}) == MAX_ROWS + 9  # with the two listeners


# --- as it arrives ----------------------------------------------------------------------------------------------------------


def document():
    watch, app = make_watch(), make_socket(cookie=1)
    look(watch, 0, app, proxy_end(app), *sidecar())
    return watch.report(T0 + NS_PER_S).document()


def encoded(document_):
    return json.dumps(document_).encode()


def test_a_report_becomes_rows_of_both_tables():
    decoded = decode_report(encoded(document()), received_unix_nano=9)
    sockets, watches = decoded.batches["sockets"], decoded.batches["socket_watches"]
    assert sockets.schema == arrow_schema("sockets")
    assert sockets.num_rows == 3
    row = next(r for r in sockets.to_pylist() if r["state"] == "ESTABLISHED")
    assert (row["source"], row["service_name"], row["capture"], row["remote_port"]) == (
        "web-0",
        "web",
        "captured",
        8080,
    )
    [watch] = watches.to_pylist()
    assert (watch["addresses"], watch["proxy_found"], watch["received_unix_nano"]) == ("10.1.0.7", True, 9)
    assert not decoded.rejected


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("local_address", "checkout", "not an IP address"),
        ("local_address", None, "not an IP address"),
        ("local_port", 70000, "0 to 65535"),
        ("local_port", True, "0 to 65535"),
        ("record_id", -1, "record_id"),
        ("record_id", 2**64, "record_id"),
        ("capture", "maybe", "captured"),
        ("direction", ["outbound"], "inbound, outbound"),
        ("state", "", "1 to 256"),
        ("state", "\ud800", "1 to 256"),
        ("last_seen_unix_nano", 1, "before"),
        ("first_seen_unix_nano", 2**63, "first_seen"),
        ("attributes", {"a": 1}, "texts"),
        ("attributes", {str(n): "" for n in range(99)}, "at most 16"),
        ("uid", "root", "uid"),
    ],
)
def test_a_bad_socket_is_left_out_with_its_reason(field, value, reason):
    bad = document()
    target = next(n for n, s in enumerate(bad["sockets"]) if s["state"] == "ESTABLISHED")
    bad["sockets"][target][field] = value
    decoded = decode_report(encoded(bad), received_unix_nano=9)
    assert decoded.batches["sockets"].num_rows == 2
    [(told, count)] = decoded.rejected.items()
    assert count == 1
    assert reason in told


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        encoded(document() | {"source": ""}),
        encoded(document() | {"service_name": 5}),
        encoded(document() | {"watch": None}),
        encoded(document() | {"watch": document()["watch"] | {"until_unix_nano": 0}}),
        encoded(document() | {"watch": document()["watch"] | {"addresses": ["nowhere"]}}),
        encoded(document() | {"sockets": {}}),
        encoded(document() | {"sockets": [0] * (MAX_SOCKETS + 1)}),
        encoded(document()).replace(b'"samples": 1', b'"samples": NaN'),
    ],
)
def test_what_is_no_report_is_refused_whole(broken):
    with pytest.raises(DecodeError, match="report"):
        decode_report(broken, received_unix_nano=9)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(document()["sockets"][0])), json_values, st.sampled_from(["socket", "watch", "report"]))
def test_any_value_gives_rows_or_a_reason(field, value, where):
    changed = document()
    target = {"socket": changed["sockets"][0], "watch": changed["watch"], "report": changed}[where]
    target[field] = value
    try:
        decoded = decode_report(encoded(changed), received_unix_nano=9)
    except DecodeError:
        return
    assert decoded.batches["sockets"].num_rows + sum(decoded.rejected.values()) == len(changed["sockets"])


# --- on its way -------------------------------------------------------------------------------------------------------------


def outbox(answers, **options):
    sent = []

    def post(body):
        sent.append(body)
        return answers.pop(0)

    return Outbox(post, **options), sent


def a_report():
    watch = make_watch()
    return watch.report(T0)


def test_a_collector_that_is_away_gets_the_reports_later_in_order():
    away, here = Answer(None, "nobody there"), Answer(200)
    box, sent = outbox([away, here, here])
    box.put(a_report())
    box.deliver(0.0)
    assert box.complaint == "nobody there"
    box.put(a_report())
    box.deliver(0.5)
    assert len(sent) == 1, "not before the wait is over"
    box.deliver(1.0)
    assert (len(sent), len(box), box.lost, box.complaint) == (3, 0, 0, "")
    assert sent[0] == sent[1]


def test_what_the_collector_refuses_is_dropped_and_counted():
    box, _ = outbox([Answer(400, "no report"), Answer(200)])
    box.put(a_report())
    box.put(a_report())
    box.deliver(0.0)
    assert (len(box), box.lost) == (0, 1)


def test_reports_are_kept_within_a_bound_oldest_first_to_go():
    box, sent = outbox([Answer(200)] * 9, max_kept_bytes=500)
    for _ in range(9):
        box.put(a_report())
    kept = len(box)
    assert 0 < kept < 9
    assert box.lost == 9 - kept
    box.deliver(0.0)
    assert len(sent) == kept

"""Hostile questions to the read API, and hostile access logs as OTLP."""

import json
import struct
from functools import partial

from collector.receiver.signals import MAX_LOGS_BYTES
from tests.campaigns import hostile
from tests.campaigns.attacks import JSON, LOGS, LOGS_METHOD, PROTOBUF, QUERY, Attack, Target, at_once
from tests.campaigns.hostile import MIB, field

FULL = MAX_LOGS_BYTES - 4096
"""As large as a log request may be; what is larger is refused unread."""

ENDLESS = "SELECT count(*) FROM range(1000000000000) a, range(1000) b WHERE a.range <> b.range"

QUERIES = {
    "a cross join without an end": ENDLESS,
    "spans crossed with spans": "SELECT count(*) FROM spans a, spans b, spans c WHERE a.name < b.name || c.name",
    "a join that is kept": "SELECT a.range, b.range FROM range(100000) a, range(100000) b ORDER BY a.range * b.range DESC",
    "a sort of everything": "SELECT md5(range::VARCHAR) AS m FROM range(100000000) ORDER BY m",
    "groups without number": "SELECT range, count(*) FROM range(200000000) GROUP BY range",
    "distinct text": "SELECT count(DISTINCT md5(range::VARCHAR)) FROM range(100000000)",
    "one list of everything": "SELECT list(range) FROM range(200000000)",
    "one text of everything": "SELECT string_agg(md5(range::VARCHAR), '') FROM range(100000000)",
    "a large answer": "SELECT md5(range::VARCHAR) AS a, md5((range + 1)::VARCHAR) AS b FROM range(1900000)",
    "a window over everything": "SELECT max(s) FROM (SELECT sum(range) OVER (ORDER BY md5(range::VARCHAR)) AS s FROM range(50000000))",
    "a recursion": "WITH RECURSIVE t(n, s) AS (SELECT 1, 'x' UNION ALL SELECT n + 1, s || s FROM t WHERE n < 60) SELECT max(length(s)) FROM t",
    "a recursion that keeps": "WITH RECURSIVE t(n) AS (SELECT 1 UNION SELECT n + 1 FROM t WHERE n < 1000000000) SELECT count(*) FROM t",
    "a slow pattern": "SELECT regexp_matches(repeat('a', 9999), '(a*)*(a*)*b') FROM range(1000000)",
    "a map of everything": "SELECT map(list(range), list(range)) FROM range(50000000)",
    "a pivot": "PIVOT (SELECT range % 5000 AS k, range AS v FROM range(1000000)) ON k USING sum(v)",
    "numbers to unnest": "SELECT count(*) FROM (SELECT unnest(range(10000)) FROM range(100000000))",
    "quantiles": "SELECT quantile_cont(range, 0.5), mode(range), median(range) FROM range(200000000)",
    "brackets": "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
    "a sum of 50,000": "SELECT " + "+".join(["1"] * 50_000),
    "a list of 200,000": "SELECT 1 WHERE 1 IN (" + ",".join(map(str, range(100_000))) + ")",
    "unions": " UNION ALL ".join(["SELECT 1"] * 5_000),
    "joins": "SELECT count(*) FROM spans t0 " + " ".join(f"JOIN spans t{n} USING (trace_id)" for n in range(1, 60)),
    "subqueries": "SELECT * FROM " + "(SELECT * FROM " * 500 + "spans" + ")" * 500,
}  # fmt: skip


def _ask(sql: str, count: int, target: Target) -> None:
    """So many at once, each with the patience of an attack; who hangs up has its query interrupted."""
    body = json.dumps({"sql": sql}).encode()
    at_once(count, lambda _: target.post(body, JSON, path=QUERY, timeout_s=target.seconds))


def _ask_without_waiting(target: Target) -> None:
    """A thousand questions whose senders hang up at once."""
    body = json.dumps({"sql": ENDLESS}).encode()

    def ask(_: int) -> None:
        for _ in range(125):
            target.post(body, JSON, path=QUERY, timeout_s=0.02)

    at_once(8, ask)


def _bodies(target: Target) -> None:
    for body in (
        b"[" * 900_000,
        b'{"sql":' + b"[" * 900_000,
        b'{"sql":"' + b"\\u0041" * 150_000 + b'"}',
        b'{"sql":' + b"9" * 1_000_000 + b"}",
        b'{"sql":"SELECT 1","sql":2}',
        b'{"sql":"\\ud800"}',
        b'{"sql":"SELECT \\u0000"}',
        b"\xff",
        b"",
        b" " * 64 * MIB,
    ):
        target.post(body, JSON, path=QUERY, timeout_s=target.seconds)


# --- access logs ----------------------------------------------------------------------------------------------------------


def _logs(records: bytes, resource: bytes = b"") -> bytes:
    """A log request as Envoy's: its resource names the log."""
    named = hostile.attribute(b"log_name", field(1, b"otel_envoy_accesslog"), 1)
    named += hostile.attribute(b"service.name", field(1, b"checkout"), 1)
    return field(1, field(1, named + resource) + field(2, records))


def _record(attributes: bytes, body: bytes = b"") -> bytes:
    return field(2, b"\x09" + struct.pack("<Q", 1_763_859_600_000_000_000) + field(5, body) + attributes)


def _log_attribute(key: bytes, value: bytes) -> bytes:
    return hostile.attribute(key, value, 6)


LINES = {
    "tiny records": lambda: _logs(_record(b"") * (FULL // 16)),
    "empty records": lambda: _logs(b"\x12\x00" * (FULL // 2)),
    "records of an access log": lambda: _logs(
        _record(_log_attribute(b"method", field(1, b"GET")) + _log_attribute(b"path", field(1, b"/"))) * (FULL // 80)
    ),
    "attributes of one record": lambda: _logs(_record(_log_attribute(b"k", field(1, b"v")) * (FULL // 13))),
    "400,000 keys of one record": lambda: _logs(
        _record(hostile.numbered(_log_attribute(b"k" * 8, field(1, b"v")), 4, 8, 400_000))
    ),
    "a deep body": lambda: _logs(_record(b"", hostile.deep_tags(1_000_000))),
    "deep values": lambda: _logs(_record(_log_attribute(b"k", hostile.deep_value(80)) * 25_000)),
    "a wide body": lambda: _logs(_record(b"", field(5, field(1, b"\x10\x01") * (FULL // 4)))),
    "a wide attribute": lambda: _logs(_record(_log_attribute(b"path", field(5, field(1, b"\x10\x01") * (FULL // 4 - 99))))),
    "one path": lambda: _logs(_record(_log_attribute(b"path", field(1, b"/" * (FULL - 999))))),
    "one body": lambda: _logs(_record(b"", field(1, b"x" * (FULL - 999)))),
    "one body of JSON": lambda: _logs(_record(b"", field(1, b"[" * (FULL - 999)))),
    "numbers that do not fit": lambda: _logs(
        _record(_log_attribute(b"response_code", field(1, b"9" * 400)) + _log_attribute(b"duration", field(1, b"-" + b"9" * 400)))
        * 25_000
    ),
    "unknown groups": lambda: _logs(_record(hostile.DEEP["open groups"](FULL)[: FULL - 999])),
    "64 MiB": lambda: _logs(b"\x12\x00" * (hostile.FULL // 2)),
}  # fmt: skip


def _log_over_http(name: str, target: Target) -> None:
    body = LINES[name]()
    at_once(2, lambda _: target.post(body, PROTOBUF, path=LOGS))


def _log_over_grpc(name: str, target: Target) -> None:
    body = LINES[name]()
    at_once(2, lambda _: target.call(body, method=LOGS_METHOD))


def questions() -> dict[str, Attack]:
    """Attacks on the read API."""
    attacks: dict[str, Attack] = {f"query: {name}, 4 at once": partial(_ask, sql, 4) for name, sql in QUERIES.items()}
    attacks["query: a cross join without an end, 64 at once"] = partial(_ask, ENDLESS, 64)
    attacks["query: a large answer, 16 at once"] = partial(_ask, QUERIES["a large answer"], 16)
    attacks["query: asked, and hung up"] = _ask_without_waiting
    attacks["query: bodies"] = _bodies
    return attacks


def logs() -> dict[str, Attack]:
    """Attacks on the logs' endpoints."""
    over_http: dict[str, Attack] = {f"logs: {name}, HTTP": partial(_log_over_http, name) for name in LINES}
    return over_http | {f"logs: {name}, gRPC": partial(_log_over_grpc, name) for name in LINES}

"""The query API over a real socket, and the sources that ask it or a file: same questions, same answers, same errors."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import httpx
import polars as pl
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from collector.api import MAX_BODY_BYTES, api_routes
from collector.client import KEPT_SECONDS, Source, _frame, open_source
from collector.commands.collect import _KEEP_ALIVE_SECONDS
from collector.errors import QueryError, SourceUnreachableError
from collector.query_protocol import QUERY_ID
from collector.store.database import Store
from collector.store.reader import Limits, Reader
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch

ENDLESS = "SELECT count(*) FROM range(1000000000000) a, range(1000) b"
DEADLINE = 10

CONNECTIONS: list[tuple[str, int]] = []
"""Of each request that the collector got, the other end of its connection."""


def filled(path: Path) -> Store:
    store = Store.open(path)
    with Writer(store) as writer:
        batch = make_batch("spans", name="buy", received_unix_nano=77, attributes=[("k", "v")])
        writer.append({"spans": batch, "ingest_errors": make_batch("ingest_errors", count=5)}).result(DEADLINE)
    return store


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the API alone."""
    store = filled(tmp_path_factory.mktemp("collector") / "evidence.duckdb")
    reader = Reader(store, Limits(rows=1000, size_bytes=1_000_000, seconds=4))
    logs = [{"source": "/var/log/a", "lag_bytes": 3, "read_age_seconds": 0.5}]
    app = Starlette(routes=api_routes(reader, database=str(store.path), access_logs=lambda: logs))

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        CONNECTIONS.append(scope["client"])
        await app(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(noting, log_config=None, lifespan="off", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(DEADLINE)
    listener.close()
    store.close()


@pytest.fixture(params=["file", "collector"])
def source(request: pytest.FixtureRequest, collector: str, tmp_path: Path) -> Iterator[Source]:
    if request.param == "collector":
        opened = open_source(collector)
    else:
        filled(tmp_path / "evidence.duckdb").close()
        opened = open_source(str(tmp_path / "evidence.duckdb"))
    yield opened
    opened.close()


# --- both sources ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_polars_frame(source: Source) -> None:
    frame = source.query("SELECT trace_id, name, attributes, sum(duration_ns) AS total FROM spans GROUP BY ALL")

    assert frame.schema["trace_id"] == pl.String
    assert frame.schema["total"] == pl.Int64
    assert frame.height == 1
    assert frame["name"].to_list() == ["buy"]
    assert "v" in str(frame["attributes"].to_list())


def test_an_empty_answer_has_its_columns(source: Source) -> None:
    frame = source.query("SELECT trace_id, span_id FROM spans WHERE false")

    assert (frame.columns, frame.height) == (["trace_id", "span_id"], 0)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[INTERVAL 1 DAY, NULL]", ["1 days", None]),
        ("{'a': [INTERVAL 1 DAY]}", {"a": ["1 days"]}),
        ("MAP {'a': INTERVAL 1 DAY}", [{"key": "a", "value": "1 days"}]),
        ("[['a'::ENUM('a')], NULL, []]", [["a"], None, []]),
        ("NULL::INTERVAL[]", None),
        ("'infinity'::TIMESTAMP", "infinity"),
        ("'-infinity'::DATE", "-infinity"),
        ("['infinity'::TIMESTAMPTZ]", ["infinity"]),
        ("DATE '290000-01-01'", "year 290000"),
        ("TIMESTAMP '290000-01-01'", "year 290000"),
        ("DATE '2026-01-31'", date(2026, 1, 31)),
        ("[DATE '9999-12-31']::DATE[1]", [date(9999, 12, 31)]),
        ("TIME '24:00:00'", "24:00:00"),
        ("union_value(a := 1)", "1"),
        ("{'u': union_value(a := 'infinity'::TIMESTAMP)}", None),
        ("'1010'::BIT", None),
        ("123456789012345678901234567890::BIGNUM", None),
        ("MAP {}", None),
        ("NULL", None),
    ],
)
def test_odd_types_are_answered(source: Source, expression: str, value: object) -> None:
    frame = source.query(f"SELECT {expression} AS x UNION ALL SELECT {expression}")

    assert frame.height == 2
    cells = frame["x"].to_list()
    assert value is None or [c.to_list() if isinstance(c, pl.Series) else c for c in cells] == [value, value]


def test_a_type_without_an_arrow_form_is_answered_or_named(source: Source) -> None:
    try:
        frame = source.query("SELECT 1::VARIANT AS x")
    except QueryError as e:
        assert "cast it to VARCHAR" in str(e)  # noqa: PT017 DuckDB 1.5 cannot send it, DuckDB 2 can
    else:
        assert frame.height == 1


def test_columns_of_one_name_get_a_number(source: Source) -> None:
    assert source.query("SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a").row(0, named=True) == {
        "a": 1, "a_2": 2, "a_1": 3, "a_3": 4,
    }  # fmt: skip
    assert "count_1" in source.query("SELECT e.*, f.* FROM ingest_errors e, ingest_errors f").columns


def test_what_no_frame_can_hold_is_a_query_error() -> None:
    def panics() -> pl.DataFrame:
        raise pl.exceptions.PanicException("not implemented")

    with pytest.raises(QueryError, match="cast unusual types"):
        _frame(panics, "evidence.duckdb")


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nosuch FROM spans", "nosuch"),
        ("DELETE FROM spans", "only SELECT"),
        ("SELECT * FROM read_text('/etc/hostname')", "not available here: read_text"),
        ("", "empty"),
    ],
)
def test_a_refused_query_says_why_in_the_same_words(source: Source, sql: str, complaint: str) -> None:
    with pytest.raises(QueryError, match=complaint):
        source.query(sql)
    assert source.query("SELECT 1 AS one").item() == 1


def in_background(ask: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except (QueryError, SourceUnreachableError) as e:
            raised.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_interrupt_ends_the_running_query(source: Source) -> None:
    thread, raised = in_background(lambda: source.query(ENDLESS))
    while not source._running._interrupts:  # type: ignore[attr-defined]
        assert thread.is_alive()
    source.interrupt()
    thread.join(DEADLINE)

    assert not thread.is_alive()
    assert len(raised) == 1
    assert isinstance(raised[0], QueryError)
    assert "interrupted" in str(raised[0])
    assert source.query("SELECT 1 AS one").item() == 1


def test_interrupt_with_nothing_running_does_nothing(source: Source) -> None:
    source.interrupt()

    assert source.query("SELECT 1 AS one").item() == 1


def test_threads_ask_at_the_same_time(source: Source) -> None:
    answers: list[int] = []
    threads = [
        in_background(lambda n=n: answers.append(source.query(f"SELECT {n} AS n").item()))[0]  # type: ignore[misc]
        for n in range(12)
    ]
    for thread in threads:
        thread.join(DEADLINE)

    assert sorted(answers) == list(range(12))


def test_a_closed_source_says_so(source: Source) -> None:
    source.close()

    with pytest.raises(SourceUnreachableError, match="closed"):
        source.query("SELECT 1")


# --- opening --------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_nobody_listening_says_what_to_try() -> None:
    with pytest.raises(SourceUnreachableError, match=r"no collector answers at .*provenance collect"):
        open_source(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("url", ["http://", "http://:80", "http://127.0.0.1:99999", "http://no host/", "http://[::1"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(SourceUnreachableError):
        open_source(url)


def test_another_http_server_is_not_taken_for_a_collector(collector: str) -> None:
    with pytest.raises(SourceUnreachableError, match="404"):
        open_source(f"{collector}/elsewhere")


def test_a_connection_is_left_before_the_collector_closes_it(collector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that is on its way while an idle connection is closed is lost."""
    assert KEPT_SECONDS < _KEEP_ALIVE_SECONDS
    monkeypatch.setattr("collector.client.KEPT_SECONDS", 0.5)
    source = open_source(collector)
    CONNECTIONS.clear()
    source.query("SELECT 1")
    source.query("SELECT 2")
    time.sleep(0.7)
    source.query("SELECT 3")
    source.close()

    first, second, third = CONNECTIONS
    assert first == second
    assert third != first


@pytest.mark.parametrize("text", ["postgres://x", "nosuch.duckdb", ".", "", "/proc/self/mem"])
def test_what_is_no_source_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SourceUnreachableError):
        open_source(text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_of_a_collector_that_was_killed_opens_with_all_that_was_committed(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.collector.test_api_and_client import filled\n"
        "filled(Path(sys.argv[1]))\nos.kill(os.getpid(), 9)"
    )
    path = tmp_path / "evidence.duckdb"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert done.returncode == -9

    opened = open_source(str(path))
    assert opened.query("SELECT count(*) AS n FROM spans").item() == 1
    opened.close()


def test_a_file_that_is_held_names_the_url_to_use(tmp_path: Path) -> None:
    with filled(tmp_path / "evidence.duckdb"), pytest.raises(SourceUnreachableError, match="collector's URL"):
        open_source(str(tmp_path / "evidence.duckdb"))


@pytest.mark.slow
def test_importing_the_client_loads_neither_duckdb_nor_httpx_nor_pyarrow() -> None:
    code = "import collector.client, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert {"duckdb", "httpx", "pyarrow", "starlette"} & set(done.stdout.split()) == set()


@pytest.mark.slow
def test_a_collector_does_not_load_polars() -> None:
    code = "import collector.api, collector.receiver.http_app, collector.witnesses.follow, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert "polars" not in done.stdout.split()


# --- the API alone --------------------------------------------------------------------------------------------------------


def test_status(collector: str) -> None:
    status = httpx.get(f"{collector}/api/v1/status").json()

    assert status["database"].endswith("evidence.duckdb")
    assert (status["spans"], status["proxy_records"], status["refused"]) == (1, 0, 5)
    assert status["last_received_unix_nano"] == 77
    assert status["access_logs"] == [{"source": "/var/log/a", "lag_bytes": 3, "read_age_seconds": 0.5}]
    assert status["version"]


@pytest.mark.parametrize(
    ("request_", "status", "complaint"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"json": ["SELECT 1"]}, 400, "expected"),
        ({"json": {"sql": 5}}, 400, "expected"),
        ({"json": {}}, 400, "expected"),
        ({"json": {"sql": "SELECT 1", "params": []}}, 400, "nothing else"),
        ({"data": {"sql": "SELECT 1"}}, 415, "application/json"),
        ({"content": b'{"sql": "SELECT 1"}', "headers": {"content-type": "text/plain"}}, 415, "application/json"),
        ({"content": b'{"sql": "SELECT 1"}'}, 415, "application/json"),
        ({"json": {"sql": " " * MAX_BODY_BYTES}}, 413, "larger than"),
        ({"json": {"sql": "DROP TABLE spans"}}, 400, "only SELECT"),
        ({"json": {"sql": "SELECT * FROM range(1001)"}}, 400, "add a LIMIT"),
        ({"json": {"sql": "SELECT string_agg('x', '') FROM range(2000000)"}}, 400, "bytes"),
        pytest.param({"json": {"sql": ENDLESS}}, 504, "longer than", marks=pytest.mark.slow),
    ],
)
def test_bad_requests_get_a_status_and_a_reason(
    collector: str, request_: dict[str, object], status: int, complaint: str
) -> None:
    response = httpx.post(f"{collector}/api/v1/query", timeout=DEADLINE, **request_)  # type: ignore[arg-type]

    assert response.status_code == status
    assert complaint in response.json()["error"]


def test_get_is_no_query(collector: str) -> None:
    assert httpx.get(f"{collector}/api/v1/query").status_code == 405


def test_an_unknown_query_cannot_be_interrupted(collector: str) -> None:
    assert httpx.delete(f"{collector}/api/v1/query/nosuch").status_code == 404


def running(collector: str, query_id: str) -> bool:
    """Whether a query with this id runs, without touching it: a second one with its id is refused."""
    response = httpx.post(f"{collector}/api/v1/query", json={"sql": "SELECT 1"}, headers={QUERY_ID: query_id})
    return response.status_code == 409


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_client_that_hangs_up_interrupts_its_query(collector: str) -> None:
    host, port = collector.removeprefix("http://").split(":")
    body = b'{"sql": "%s"}' % ENDLESS.encode()
    began = time.monotonic()
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /api/v1/query HTTP/1.1\r\nhost: x\r\n{QUERY_ID}: gone\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: running(collector, "gone"))
    wait_until(lambda: not running(collector, "gone"))

    assert time.monotonic() - began < 3.9, "the time limit ended it, not the hang-up"

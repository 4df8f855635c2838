"""Files of older releases: brought up to date whole or not at all, and readable before that."""

import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from collector import schema
from collector.client import FileSource
from collector.errors import SourceUnreachableError, StoreError
from collector.forensics.search import TraceFilter, search
from collector.forensics.traces import trace, trace_records
from collector.store.database import Store
from collector.store.derived import attribute_key_id
from collector.store.migrations import STEPS, Step, check_readable, migrate, stored_version

VERSION_1 = Path(__file__).with_name("schema_version_1.sql")
VERSION_2 = Path(__file__).with_name("schema_version_2.sql")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
DEADLINE_SECONDS = 60


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file as version 1 of the schema made it."""
    path = tmp_path / "old.duckdb"
    connection = duckdb.connect(str(path), config={"storage_compatibility_version": "v1.5.0"})
    connection.execute(VERSION_1.read_text())
    connection.close()
    return path


@pytest.fixture
def old_2(old: Path) -> Path:
    """A file as version 2 of the schema made it."""
    connection = duckdb.connect(str(old))
    connection.execute(VERSION_2.read_text())
    connection.close()
    return old


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = duckdb.connect(str(path), read_only=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def tables(path: Path) -> set[str]:
    return {str(name) for (name,) in rows(path, "SELECT table_name FROM duckdb_tables()")}


def version(path: Path) -> object:
    return rows(path, "SELECT value FROM meta WHERE key = 'schema_version'")[0][0]


def test_the_steps_lead_from_the_first_version_to_this_one() -> None:
    assert [step.before for step in STEPS] == list(range(1, schema.SCHEMA_VERSION))


def test_an_old_file_is_migrated_when_it_is_opened_for_writing(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = rows(old, "SELECT * FROM spans ORDER BY span_id")
    with caplog.at_level(logging.INFO):
        Store.open(old).close()

    assert version(old) == str(schema.SCHEMA_VERSION)
    assert rows(old, "SELECT * FROM spans ORDER BY span_id") == before
    assert "schema version 1 to 2" in caplog.text
    assert "schema version 2 to 3" in caplog.text
    is_like_a_new_file(old)


def is_like_a_new_file(old: Path) -> None:
    # What a fresh file looks like, column by column.
    Store.open(old.with_name("new.duckdb")).close()
    columns = "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() ORDER BY ALL"
    assert rows(old, columns) == rows(old.with_name("new.duckdb"), columns)
    macros = "SELECT function_name FROM duckdb_functions() WHERE NOT internal ORDER BY ALL"
    assert rows(old, macros) == rows(old.with_name("new.duckdb"), macros) == [(name,) for name in schema.MACROS]


def test_a_file_of_version_2_keeps_its_records_and_takes_flows(old_2: Path) -> None:
    Store.open(old_2).close()

    is_like_a_new_file(old_2)
    assert rows(old_2, "SELECT path, format, downstream_peer FROM proxy_records") == [("/items", None, None)]
    # Rows are inserted by the position of their columns: those of a migrated table must be where a new one has them.
    for table in schema.TABLES:
        names = f"SELECT column_name FROM duckdb_columns() WHERE table_name = '{table}' ORDER BY column_index"
        assert [name for (name,) in rows(old_2, names)] == [c.name for c in schema.TABLES[table]]


def test_an_old_file_that_is_only_read_has_the_tables_of_today_empty(old_2: Path) -> None:
    content = old_2.read_bytes()
    source = FileSource(str(old_2))
    try:
        for table in schema.TABLES:
            assert source.query(f"SELECT * FROM {table}").columns == [c.name for c in schema.TABLES[table]]
        assert source.query("SELECT path, format FROM proxy_records").rows() == [("/items", None)]
        assert source.query("SELECT count(*) FROM flows").item() == 0
    finally:
        source.close()
    assert old_2.read_bytes() == content


def test_the_short_cuts_are_filled_from_the_spans(old: Path) -> None:
    Store.open(old).close()
    second = 10**9
    start = 1_790_000_000 * second

    assert rows(old, "SELECT * FROM trace_arrivals ORDER BY first_received_unix_nano") == [
        (int(TRACE[16:], 16), start + second, start + 7 * second),
        (0x800000000000000F, start + 301 * second, start + 301 * second),
        (int(TRACE[16:], 16), start + 3601 * second, start + 3601 * second),
    ]
    assert rows(old, "SELECT * FROM attribute_keys ORDER BY stored_in, key") == [
        (attribute_key_id(column, key), key, column, start + received * second)
        for column, key, received in (
            ("attributes", "app.cart", 7),
            ("attributes", "app.tenant", 1),
            ("attributes_json", "app.cached", 301),
            ("attributes_json", "thread.id", 1),
        )
    ]


def test_a_second_opening_migrates_nothing(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store.open(old).close()
    arrivals = rows(old, "SELECT * FROM trace_arrivals ORDER BY ALL")
    with caplog.at_level(logging.INFO):
        Store.open(old).close()

    assert rows(old, "SELECT * FROM trace_arrivals ORDER BY ALL") == arrivals
    assert "schema version" not in caplog.text


def test_an_old_file_that_is_only_read_answers_the_same_and_stays_as_it_is(old: Path) -> None:
    def answers() -> list[object]:
        source = FileSource(str(old))
        try:
            texts = (None, "app.tenant=acme", "thread.id=7", "no.such.key=1", TRACE)
            found = [search(source.query, TraceFilter(text=text)).to_dicts() for text in texts]
            return [trace(source.query, TRACE).to_dicts(), trace_records(source.query, TRACE).to_dicts(), *found]
        finally:
            source.close()

    content = old.read_bytes()
    before = answers()
    assert old.read_bytes() == content
    assert tables(old).isdisjoint(schema.DERIVED_TABLES)
    Store.open(old).close()

    assert answers() == before
    waterfall, _, everything, tenant, thread, absent, by_id = before
    assert [len(x) for x in (waterfall, everything, tenant, thread, absent, by_id)] == [3, 2, 1, 1, 0, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize("opener", [Store.open, Store.open_read_only])
def test_a_file_of_a_newer_release_is_refused_and_left_alone(old: Path, opener: object) -> None:
    connection = duckdb.connect(str(old))
    connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    connection.close()
    content = old.read_bytes()

    with pytest.raises(StoreError, match=r"schema version 999, this mesh-provenance reads .* install that one"):
        opener(old)  # type: ignore[operator]
    assert old.read_bytes() == content


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "1.5", "'; DROP TABLE spans"])
@pytest.mark.parametrize("opener", [Store.open, Store.open_read_only])
def test_a_version_that_is_no_number_is_refused(old: Path, opener: object, value: str) -> None:
    connection = duckdb.connect(str(old))
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [value])
    connection.close()

    with pytest.raises(StoreError, match="versions are numbers from 1 on"):
        opener(old)  # type: ignore[operator]


def test_what_is_too_old_to_be_read_names_the_commands_that_migrate_it() -> None:
    with pytest.raises(StoreError) as raised:
        check_readable(1, Path("/evidence.duckdb"), oldest=2)

    assert "provenance collect --db /evidence.duckdb" in str(raised.value)
    assert "provenance import FILES --into /evidence.duckdb" in str(raised.value)


def test_steps_run_in_order_from_where_the_file_is(old: Path) -> None:
    ran: list[int] = []

    def step(before: int) -> Step:
        def apply(connection: duckdb.DuckDBPyConnection) -> None:
            ran.append(before)
            connection.execute(f"CREATE TABLE made_by_{before} AS SELECT count(*) AS spans FROM spans")

        return Step(before, "a test", apply)

    connection = duckdb.connect(str(old))
    migrate(connection, old, steps=[step(1), step(2)])
    migrate(connection, old, steps=[step(1), step(2), step(3)])
    assert ran == [1, 2, 3]
    assert stored_version(connection, old) == 4
    assert connection.execute("SELECT * FROM made_by_3").fetchall() == [(4,)]
    connection.close()


def test_a_step_that_is_missing_is_an_error(old: Path) -> None:
    connection = duckdb.connect(str(old))
    with pytest.raises(StoreError, match="no way from it to 4"):
        migrate(connection, old, steps=[Step(1, "a", lambda _: None), Step(3, "b", lambda _: None)])
    assert stored_version(connection, old) == 1
    connection.close()


def test_a_migration_that_fails_leaves_the_old_version(old: Path) -> None:
    def apply(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("CREATE TABLE half (x INTEGER)")
        connection.execute("DELETE FROM spans")
        connection.execute("SELECT error('no luck')")

    connection = duckdb.connect(str(old))
    with pytest.raises(
        StoreError, match=r"from schema version 3 to 4 failed: no luck; the file is as it was, of version 1"
    ):
        migrate(connection, old, steps=[*STEPS, Step(schema.SCHEMA_VERSION, "a test", apply)])
    connection.close()

    assert version(old) == "1"
    assert tables(old).isdisjoint({"half", *schema.DERIVED_TABLES})
    assert rows(old, "SELECT count(*) FROM spans") == [(4,)]


KILLED = """
import sys
from pathlib import Path
import duckdb
from collector.store.migrations import STEPS, Step, migrate

def wait(connection):
    print("in the middle", flush=True)
    sys.stdin.read()

path = Path(sys.argv[1])
connection = duckdb.connect(str(path), config={"checkpoint_threshold": "1KB"})
migrate(connection, path, steps=[*STEPS, Step(3, "waits to be killed", wait)])
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_the_old_version(old: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(old)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        ready, _, _ = select.select([process.stdout], [], [], DEADLINE_SECONDS)
        assert ready
        assert process.stdout.readline() == b"in the middle\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL

    assert version(old) == "1"
    assert tables(old).isdisjoint(schema.DERIVED_TABLES)
    assert rows(old, "SELECT count(*) FROM spans") == [(4,)]
    Store.open(old).close()
    assert version(old) == str(schema.SCHEMA_VERSION)
    assert rows(old, "SELECT count(*) FROM trace_arrivals") == [(3,)]


def test_the_macro_for_people_finds_a_trace_whole(old: Path) -> None:
    Store.open(old).close()
    source = FileSource(str(old))
    try:
        for written in (TRACE, TRACE.upper(), "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"):
            found = source.query(f"SELECT span_id FROM spans_of_trace('{written}') ORDER BY span_id")
            assert found["span_id"].to_list() == [1, 2, 4]
        assert source.query(f"SELECT * FROM spans_of_trace('{'f' * 32}')").is_empty()
    finally:
        source.close()


def test_a_trace_without_rows_of_its_own_is_found_all_the_same(old: Path) -> None:
    Store.open(old).close()
    connection = duckdb.connect(str(old))
    connection.execute("DELETE FROM trace_arrivals")
    connection.execute("DELETE FROM attribute_keys")
    connection.close()
    source = FileSource(str(old))
    try:
        assert trace(source.query, TRACE).height == 3
        assert source.query(f"SELECT * FROM spans_of_trace('{TRACE}')").height == 3
        assert search(source.query, TraceFilter(text="app.cart=c1")).height == 1
    finally:
        source.close()


def test_a_file_that_is_not_there_is_no_old_file(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachableError, match="no such file"):
        FileSource(str(tmp_path / "none.duckdb"))

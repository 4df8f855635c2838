"""Opening an evidence file: what it promises of good files, and what it says of bad ones."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from collector import schema
from collector.errors import StoreBusyError, StoreError
from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.reader import Reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evidence.duckdb"


def test_a_new_file_has_every_table_with_its_columns_and_a_version(path: Path) -> None:
    with Store.open(path) as store:
        reader = Reader(store)
        for table, columns in schema.TABLES.items():
            described = reader.query(f"DESCRIBE {table}").to_pylist()
            assert [(d["column_name"], d["column_type"], d["null"]) for d in described] == [
                (c.name, c.type, "NO" if c.required else "YES") for c in columns
            ]
        meta = {row["key"]: row["value"] for row in reader.query("SELECT * FROM meta").to_pylist()}
    assert meta["schema_version"] == str(schema.SCHEMA_VERSION)
    assert meta["created_by"].startswith("mesh-provenance ")


def test_a_new_file_is_written_in_the_storage_format_of_duckdb_1_5(path: Path) -> None:
    with Store.open(path) as store:
        tags = Reader(store).query("SELECT tags FROM duckdb_databases() WHERE NOT internal").to_pylist()

    assert dict(tags[0]["tags"])["storage_version"].startswith("v1.5.0")


def test_a_file_keeps_its_storage_format_when_it_is_opened_again(path: Path) -> None:
    for _ in range(2):
        with Store.open(path) as store:
            store.cursor().execute("INSERT INTO egress_allow VALUES (NULL, 'example.com', 443)")
    with Store.open(path) as store:
        tags = Reader(store).query("SELECT tags FROM duckdb_databases() WHERE NOT internal").to_pylist()

    assert dict(tags[0]["tags"])["storage_version"].startswith("v1.5.0")


def test_row_groups_have_their_size_in_a_file_that_is_opened_again(path: Path) -> None:
    Store.open(path).close()
    with Store.open(path) as store:
        store.cursor().execute("INSERT INTO egress_allow SELECT NULL, 'a', range FROM range(100_000)")
        store.checkpoint()
        sizes = Reader(store).query("SELECT max(count) AS n FROM pragma_storage_info('egress_allow')").to_pylist()

    assert sizes == [{"n": ROW_GROUP_ROWS}]


def test_the_evidence_is_the_only_database_that_a_cursor_sees(path: Path) -> None:
    with Store.open(path) as store:
        cursor = store.cursor()
        names = cursor.execute("SELECT database_name FROM duckdb_databases() WHERE NOT internal").fetchall()
        [current] = cursor.execute("SELECT current_database()").fetchall()

        assert names == [current]
        with pytest.raises(duckdb.Error, match="memory"):
            cursor.execute("CREATE TABLE memory.notes (text VARCHAR)")


def test_a_path_with_a_quote_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "it's evidence; DROP.duckdb"
    Store.open(path).close()

    with Store.open_read_only(path) as store:
        assert store.path == path
        assert Reader(store).query("SELECT * FROM spans").num_rows == 0


def test_a_large_question_spills_beside_the_file_and_cleans_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.store.database._COLLECTOR_MEMORY_BYTES", 48 * 1024 * 1024)
    spilled = path.with_name(path.name + ".tmp")
    with Store.open(path) as store:
        cursor = store.cursor()
        cursor.execute("CREATE TEMP TABLE large AS SELECT uuid() AS a, uuid() AS b FROM range(3_000_000)")
        assert any(spilled.iterdir())
        assert cursor.execute("SELECT count(*) FROM large").fetchall() == [(3_000_000,)]
        cursor.close()
    assert not spilled.exists() or not any(spilled.iterdir())


def test_a_file_opens_again_with_what_was_in_it(path: Path) -> None:
    with Store.open(path) as store:
        store.cursor().execute("INSERT INTO egress_allow VALUES (NULL, 'example.com', 443)")
    with Store.open(path) as store:
        assert Reader(store).query("SELECT destination FROM egress_allow").to_pylist() == [
            {"destination": "example.com"}
        ]


def test_an_empty_store_opens_read_only(path: Path) -> None:
    Store.open(path).close()

    with Store.open_read_only(path) as store:
        assert Reader(store).query("SELECT * FROM spans").num_rows == 0


def test_a_read_only_store_cannot_be_written(path: Path) -> None:
    Store.open(path).close()

    with Store.open_read_only(path) as store, pytest.raises(duckdb.InvalidInputException, match="read-only"):
        store.cursor().execute("INSERT INTO egress_allow VALUES (NULL, 'example.com', 443)")


@pytest.mark.parametrize("content", [b"", b"x", b"not a database\n" * 1000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(StoreError, match="not a DuckDB file"):
        Store.open_read_only(path)
    if content:  # DuckDB takes an empty file for a new one
        with pytest.raises(StoreError, match="not a DuckDB file"):
            Store.open(path)
    assert content == b"" or path.read_bytes() == content


def test_a_truncated_database_is_refused(path: Path) -> None:
    Store.open(path).close()
    path.write_bytes(path.read_bytes()[:5000])

    with pytest.raises(StoreError, match=r"evidence\.duckdb"):
        Store.open_read_only(path)


@pytest.mark.parametrize("opener", [Store.open, Store.open_read_only])
def test_a_database_of_somebody_else_is_refused_and_left_alone(path: Path, opener: object) -> None:
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE TABLE customers (name VARCHAR)")

    with pytest.raises(StoreError, match="not an evidence store"):
        opener(path)  # type: ignore[operator]
    with duckdb.connect(str(path)) as other:
        assert other.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("customers",)]


@pytest.mark.parametrize("opener", [Store.open, Store.open_read_only])
def test_another_schema_version_is_refused(path: Path, opener: object) -> None:
    Store.open(path).close()
    with duckdb.connect(str(path)) as other:
        other.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")

    with pytest.raises(StoreError, match=f"schema version 999, this mesh-provenance reads {schema.SCHEMA_VERSION}"):
        opener(path)  # type: ignore[operator]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"directory .*nowhere does not exist"):
        Store.open(tmp_path / "nowhere" / "evidence.duckdb")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a directory"):
        Store.open(tmp_path)


def test_a_missing_file_is_not_created_by_reading(path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        Store.open_read_only(path)
    assert not path.exists()


def test_a_directory_that_takes_no_files(path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be opened|no permission"):
        Store.open("/proc/evidence.duckdb")


def test_a_file_that_is_open_in_this_process_is_busy(path: Path) -> None:
    with Store.open(path), pytest.raises(StoreBusyError, match="already open in this process"):
        Store.open_read_only(path)


@pytest.mark.slow
@pytest.mark.parametrize("opener", ["open", "open_read_only"])
def test_a_file_that_another_process_holds_is_busy_and_the_message_names_it(path: Path, opener: str) -> None:
    with Store.open(path):
        code = (
            "import sys\nfrom collector.store.database import Store\nfrom collector.errors import StoreBusyError\n"
            f"try:\n    Store.{opener}(sys.argv[1])\nexcept StoreBusyError as e:\n    print(e)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=60
        )
    assert "PID" in done.stdout
    assert "use its URL" in done.stdout


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store.open(path)
    store.close()
    store.close()

    with pytest.raises(StoreError, match="closed"):
        store.cursor()


def test_the_configuration_is_locked(path: Path) -> None:
    with Store.open(path) as store, pytest.raises(duckdb.InvalidInputException, match="locked"):
        store.cursor().execute("SET enable_external_access = true")

"""The reader: answers SELECTs with usable types, within limits, and lets nobody write, read files or reach out."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from collector.errors import QueryError
from collector.store.database import Store
from collector.store.reader import (
    TABLE_FUNCTIONS,
    Interrupt,
    Limits,
    QueryInterruptedError,
    QueryTimeoutError,
    Reader,
)
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row

ENDLESS = "SELECT count(*) FROM range(1000000000000) a, range(1000) b"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with opened_with_three_spans(tmp_path_factory.mktemp("store")) as opened:
        yield opened


@pytest.fixture(scope="module", params=["writable", "read-only"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Inside the collector, whose connection may write, and on a file of one's own."""
    opened = opened_with_three_spans(tmp_path_factory.mktemp("reader"))
    if request.param == "read-only":
        opened.close()
        opened = Store.open_read_only(opened.path)
    with opened:
        yield Reader(opened)


def opened_with_three_spans(directory: Path) -> Store:
    store = Store.open(directory / "evidence.duckdb")
    with Writer(store) as writer:
        writer.append({"spans": make_batch("spans", *[make_row("spans") for _ in range(3)])}).result(10)
    return store


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM spans",
        "select 1;",
        "-- a comment\nSELECT 1 -- another",
        "/* one */ SELECT /* two */ 1",
        "FROM spans",
        "TABLE spans",
        "VALUES (1), (2)",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
        "DESCRIBE spans",
        "DESCRIBE SELECT 1",
        "SUMMARIZE spans",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM spans",
        "EXPLAIN ANALYZE SELECT * FROM spans",
        "/* why so slow */ EXPLAIN SELECT 1",
        "SELECT * FROM range(5), unnest([1, 2])",
        "SELECT list_transform([1, 2], lambda x: x + 1), [x + 1 for x in [1]], quantile_cont(duration_ns, 0.5) FROM spans",
        "PIVOT (SELECT kind, name FROM spans) ON kind IN ('a', 'b') USING count(*)",
        "SELECT * FROM duckdb_tables()",
        "SELECT * FROM pragma_table_info('spans')",
        """SELECT '"function_name":"read_text"' AS "read_csv(", 'COPY spans TO' AS b""",
        "SELECT " + " + ".join(["1"] * 900),
    ],
)
def test_what_is_answered(reader: Reader, sql: str) -> None:
    assert reader.query(sql).num_rows >= 1


@pytest.mark.parametrize(
    "sql",
    [
        # writes
        "INSERT INTO spans SELECT * FROM spans",
        "UPDATE spans SET name = 'x'",
        "DELETE FROM spans",
        "TRUNCATE spans",
        "DROP TABLE spans",
        "ALTER TABLE spans DROP COLUMN name",
        "CREATE TABLE t (a INT)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE MACRO m(a) AS a",
        "CREATE SECRET s (TYPE s3)",
        "MERGE INTO spans USING spans AS s ON FALSE WHEN NOT MATCHED THEN INSERT *",
        "WITH x AS (INSERT INTO spans SELECT * FROM spans RETURNING 1) SELECT * FROM x",
        "WITH x AS (DELETE FROM spans RETURNING 1) SELECT * FROM x",
        "WITH x AS (COPY spans TO '{leak}') SELECT * FROM x",
        "EXPLAIN ANALYZE INSERT INTO spans SELECT * FROM spans",
        "EXPLAIN ANALYZE DELETE FROM spans",
        "EXPLAIN COPY spans TO '{leak}'",
        "PREPARE p AS DELETE FROM spans",
        "EXECUTE p",
        "BEGIN",
        "COMMIT",
        "CHECKPOINT",
        "VACUUM",
        # several statements
        "SELECT 1; SELECT 2",
        "SELECT 1; DELETE FROM spans",
        "COMMIT; BEGIN; DELETE FROM spans",
        "/* ; */ SELECT 1; DROP TABLE spans",
        # files
        "COPY spans TO '{leak}'",
        "COPY (SELECT 1) TO '{leak}' (FORMAT parquet)",
        "EXPORT DATABASE '{leak}'",
        "IMPORT DATABASE '{leak}'",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM READ_TEXT('{secret}')",
        "SELECT * FROM \"read_text\"('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_csv_auto('{secret}')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM read_ndjson_objects('{secret}')",
        "SELECT * FROM read_parquet('{secret}')",
        "SELECT * FROM parquet_metadata('{secret}')",
        "SELECT * FROM read_duckdb('{secret}')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM '{secret}'",
        'SELECT * FROM "{secret}.csv"',
        "SELECT (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM spans WHERE name IN (SELECT content FROM read_text('{secret}'))",
        "WITH x AS (SELECT * FROM read_text('{secret}')) SELECT * FROM x",
        "DESCRIBE SELECT * FROM read_csv('{secret}')",
        "SUMMARIZE SELECT * FROM read_text('{secret}')",
        "EXPLAIN SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "SELECT * FROM query_table('{secret}')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "PRAGMA json_execute_serialized_sql('{{}}')",
        # the network, other databases, extensions
        "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "ATTACH '{leak}' AS other",
        "ATTACH '{secret}' AS other (READ_ONLY)",
        "DETACH evidence",
        "USE memory",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '{secret}'",
        "FORCE INSTALL httpfs",
        "UPDATE EXTENSIONS",
        # the process and its configuration
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "SET VARIABLE a = 1",
        "PRAGMA enable_external_access",
        "PRAGMA database_list",
        "PRAGMA enable_profiling",
        "CALL pragma_version()",
        "CALL force_checkpoint()",
        "SELECT getenv('HOME')",
        "SELECT write_log('x')",
        "SELECT nextval('s')",
        "SELECT * FROM force_checkpoint()",
        "SELECT * FROM checkpoint()",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM truncate_duckdb_logs()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_extensions()",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan()",
        "SELECT * FROM python_map_function(NULL)",
        "SELECT * FROM store",
        # no SQL
        "",
        "   ",
        ";",
        "-- nothing",
        "hello",
        "SELECT",
        "SELECT ?",
        "SELECT $1",
        "SELECT * FROM nosuch",
        "SELECT CAST('x' AS INTEGER)",
        "PIVOT spans ON kind USING count(*)",
        "SELECT 1 \0; DROP TABLE spans",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "EXPLAIN",
        "EXPLAIN ANALYZE",
    ],
)
def test_what_is_refused(reader: Reader, tmp_path: Path, sql: str) -> None:
    secret, leak = tmp_path / "secret", tmp_path / "leak"
    secret.write_text("a,b\nsecret,1\n")
    before = reader.query("SELECT * FROM spans ORDER BY span_id")

    with pytest.raises(QueryError) as refused:
        reader.query(sql.format(secret=secret, leak=leak))

    assert str(refused.value)
    assert "secret,1" not in str(refused.value)
    assert not leak.exists()
    assert reader.query("SELECT * FROM spans ORDER BY span_id").equals(before)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 100), lpad(hex(77), 16, '0'), rpad(name, 20, '.'), range(10) FROM spans",
        "SELECT unnest(generate_series(1, 20, 2)), list_resize([1], 5), bitstring('1', 8)",
        "SELECT printf('%05.2f', 1.5), format('{:>10} {}', 'a', 2)",
        "SELECT count(*) FROM range(1000000)",
        """SELECT 1 AS '"function_name":"repeat"'""",
    ],
)
def test_functions_that_build_large_values_build_small_ones(reader: Reader, sql: str) -> None:
    assert reader.query(sql).num_rows >= 1


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 3000000000))",
        "SELECT length(main.REPEAT('x', 3000000000))",
        "SELECT length(('x').repeat(3000000000))",
        "SELECT repeat(repeat('x', 10000), 10000)",
        "SELECT repeat(name, 1000) FROM spans",
        "SELECT repeat('x', 1000 * 1000)",
        "SELECT repeat('x', a) AS \"{}\" FROM (VALUES (3000000000)) AS t(a)",
        "SELECT len(range(3000000000))",
        "SELECT len(range(-3000000000, 0))",
        "SELECT len(generate_series(1, 3000000000))",
        "SELECT [x for x in range(3000000000)]",
        "SELECT * FROM spans WHERE len(range(3000000000)) > 1",
        "SELECT * FROM range(len(range(3000000000)))",
        "EXPLAIN ANALYZE SELECT len(range(3000000000))",
        "SELECT lpad('x', 3000000000, 'y')",
        "SELECT list_resize([1], 3000000000)",
        "SELECT bitstring('1', 2000000000)",
        "SELECT format('{:>2000000000}', 'x')",
        "SELECT format('{:>{}}', 'x', 2000000000)",
        "SELECT printf('%2000000000d', 1)",
        "SELECT printf('%*d', 2000000000, 1)",
        "SELECT list_reduce(['x', 'x'], lambda a, x: a || a, 'x')",
    ],
)
def test_functions_that_build_large_values_are_refused_before_they_run(reader: Reader, sql: str) -> None:
    with pytest.raises(QueryError, match=r"literal arguments|not available here"):
        reader.query(sql)


def test_every_table_function_of_this_duckdb_is_listed_or_refused(store: Store) -> None:
    kinds = "function_type IN ('table', 'pragma', 'table_macro')"
    names = {
        r[0] for r in duckdb.connect().execute(f"SELECT function_name FROM duckdb_functions() WHERE {kinds}").fetchall()
    }
    reader = Reader(store)

    answered = set()
    for name in names - TABLE_FUNCTIONS:
        with pytest.raises(QueryError):
            answered.add(reader.query(f'SELECT * FROM "{name}"()') and name)
    assert answered == set()


def test_even_a_statement_that_passes_every_check_cannot_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(_: object, sql: str, *, guarded: bool) -> tuple[str, frozenset[str]]:
        return sql, frozenset()

    monkeypatch.setattr("collector.store.reader._one_statement", unchecked)
    reader = Reader(store)

    for sql in ("DELETE FROM spans", "CREATE TABLE t (a INT)", "COPY spans TO '/dev/null'", "ATTACH '/dev/null' AS x"):
        with pytest.raises(QueryError):
            reader.query(sql)
    assert reader.query("SELECT count(*) AS n FROM spans").to_pylist() == [{"n": 3}]


def test_too_many_rows_are_an_error_not_a_shorter_answer(store: Store) -> None:
    reader = Reader(store, Limits(rows=100))

    assert reader.query("SELECT * FROM range(100)").num_rows == 100
    with pytest.raises(QueryError, match="more than 100 rows; add a LIMIT"):
        reader.query("SELECT * FROM range(101)")


def test_too_many_bytes_are_an_error(store: Store) -> None:
    with pytest.raises(QueryError, match="bytes"):
        Reader(store, Limits(size_bytes=10_000)).query("SELECT string_agg('x', '') FROM range(20000)")


def test_an_endless_answer_is_not_held_in_memory(store: Store) -> None:
    with pytest.raises(QueryError, match="more than 10 rows"):
        Reader(store, Limits(rows=10)).query("SELECT * FROM range(1000000000000)")


def test_memory_has_a_limit(store: Store) -> None:
    [row] = Reader(store).query("SELECT current_setting('memory_limit') AS size").to_pylist()
    [spill] = Reader(store).query("SELECT current_setting('max_temp_directory_size') AS size").to_pylist()

    assert row["size"].endswith("MiB") or row["size"] == "1.0 GiB"
    assert spill["size"] == "8.0 GiB"


def test_the_time_limit_ends_a_query(store: Store) -> None:
    began = time.monotonic()
    with pytest.raises(QueryTimeoutError, match=r"longer than 0\.2 s"):
        Reader(store, Limits(seconds=0.2)).query(ENDLESS)
    assert time.monotonic() - began < 5


def test_an_interrupt_ends_a_running_query_and_no_other(store: Store) -> None:
    reader, interrupt = Reader(store), Interrupt()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            reader.query(ENDLESS, interrupt=interrupt)
        except QueryInterruptedError as e:
            failures.append(e)

    thread = threading.Thread(target=ask)
    thread.start()
    assert reader.query("SELECT 1").num_rows == 1
    interrupt()
    thread.join(10)

    assert not thread.is_alive()
    assert len(failures) == 1
    assert reader.query("SELECT 1").num_rows == 1


def test_an_interrupt_before_the_query_counts(store: Store) -> None:
    interrupt = Interrupt()
    interrupt()

    with pytest.raises(QueryInterruptedError):
        Reader(store).query("SELECT 1", interrupt=interrupt)


def test_an_interrupt_after_the_query_does_nothing(store: Store) -> None:
    interrupt = Interrupt()
    reader = Reader(store)
    reader.query("SELECT 1", interrupt=interrupt)
    assert not interrupt.requested

    interrupt()
    assert reader.query("SELECT 1").num_rows == 1


def test_several_threads_ask_at_once(store: Store) -> None:
    reader = Reader(store)
    answers: list[int] = []

    def ask(n: int) -> None:
        answers.append(reader.query(f"SELECT sum(range)::BIGINT AS s FROM range({n})").to_pylist()[0]["s"])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(answers) == [n * (n - 1) // 2 for n in range(1, 9)]


@pytest.mark.parametrize(
    ("sql", "type_", "value"),
    [
        ("SELECT sum(1) AS x", pa.int64(), 1),
        ("SELECT 9223372036854775807::HUGEINT AS x", pa.int64(), 2**63 - 1),
        ("SELECT NULL::HUGEINT AS x", pa.int64(), None),
        (
            "SELECT uuid '4bf92f35-77b3-4da6-a3ce-929d0e0e4736' AS x",
            pa.string(),
            "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
        ),
        ("SELECT INTERVAL '1 month 2 days 3 seconds' AS x", pa.string(), "1 months 2 days 3 seconds"),
        ("SELECT INTERVAL '0 seconds' AS x", pa.string(), "0 seconds"),
        ("SELECT 'a'::ENUM('a', 'b') AS x", pa.string(), "a"),
        ("SELECT 18446744073709551615::UBIGINT AS x", pa.uint64(), 2**64 - 1),
    ],
)
def test_types_are_plain(store: Store, sql: str, type_: pa.DataType, value: object) -> None:
    table = Reader(store).query(sql)

    assert table.schema.field("x").type == type_
    assert table.column("x").to_pylist() == [value]


def test_a_sum_beyond_64_bits_stays_exact(store: Store) -> None:
    [row] = Reader(store).query("SELECT sum(x) AS x FROM (VALUES (9223372036854775807), (1)) AS t(x)").to_pylist()

    assert int(row["x"]) == 2**63


def test_an_empty_answer_keeps_its_columns(store: Store) -> None:
    table = Reader(store).query("SELECT trace_id, span_id FROM spans WHERE false")

    assert table.schema.names == ["trace_id", "span_id"]
    assert table.num_rows == 0

"""Every way that we could think of to make the read API write, read files, reach out, change settings or take the machine.

All go over HTTP with a valid read token, as a holder of one would: what it protects is the evidence, and the host's files.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest

from tests.collector.receiver.guarded_collector import READ, Client, Files, Guarded, one_span, running

SECRET = "the-secret-in-a-file"
ENDLESS = "SELECT count(*) FROM range(1000000000000) a, range(1000) b"


@dataclass(frozen=True)
class Target:
    collector: Guarded
    secret: Path
    leak: Path
    directory: Path

    def send(self, sql: str) -> httpx.Response:
        named = {
            "secret": str(self.secret),
            "leak": str(self.leak),
            "dir": str(self.directory),
            "db": str(self.collector.store.path),
        }
        for name, path in named.items():
            sql = sql.replace("{" + name + "}", path)
        return Client(READ).ask(self.collector, sql)

    def fingerprint(self) -> object:
        """What no question may change: rows, tables, settings, extensions, attached databases, files."""
        answers = [
            self.send(sql).content
            for sql in (
                "SELECT count(*), sum(span_id) FROM spans",
                "SELECT table_name, column_count FROM duckdb_tables() ORDER BY ALL",
                # The collector itself gives a question more memory than it keeps while it only writes.
                "SELECT name, value FROM duckdb_settings() WHERE name NOT IN ('memory_limit', 'max_memory', 'threads', 'worker_threads') ORDER BY ALL",
                "SELECT database_name, readonly FROM duckdb_databases() ORDER BY ALL",
                "SELECT view_name FROM duckdb_views() WHERE NOT internal",
                "SELECT count(*) FROM duckdb_functions()",
            )
        ]
        return answers, sorted(p.name for p in self.directory.iterdir() if not p.name.startswith("evidence"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("attacked")
    files = Files(directory)
    secret = directory / "secret.csv"
    secret.write_text(f"a,b\n{SECRET},1\n")
    os.environ["PROVENANCE_TEST_SECRET"] = SECRET
    with running(directory, query_seconds=2.0, **files.tokens()) as collector:
        with Client("write-" + "w" * 20).http() as http:
            headers = {"content-type": "application/x-protobuf", "authorization": "Bearer write-" + "w" * 20}
            http.post(f"{collector.url}/v1/traces", content=one_span(), headers=headers).raise_for_status()
        yield Target(collector, secret, directory / "leak", directory)
    del os.environ["PROVENANCE_TEST_SECRET"]


ATTACKS = {
    "write": [
        "INSERT INTO spans SELECT * FROM spans",
        "INSERT OR REPLACE INTO resources SELECT * FROM resources",
        "UPDATE spans SET name = 'x'",
        "DELETE FROM spans",
        "TRUNCATE spans",
        "DROP TABLE spans",
        "DROP SCHEMA main CASCADE",
        "ALTER TABLE spans RENAME TO gone",
        "CREATE TABLE t AS SELECT * FROM spans",
        "CREATE TEMP TABLE t (a INT)",
        "CREATE OR REPLACE VIEW spans AS SELECT 1",
        "CREATE TEMP VIEW v AS SELECT 1",
        "CREATE MACRO m(a) AS a + 1",
        "CREATE OR REPLACE TEMP MACRO lower(a) AS 'x'",
        "CREATE FUNCTION m() AS TABLE SELECT 1",
        "CREATE SEQUENCE s",
        "CREATE TYPE mood AS ENUM ('x')",
        "CREATE INDEX i ON spans (name)",
        "CREATE SCHEMA s",
        "COMMENT ON TABLE spans IS 'x'",
        "MERGE INTO spans USING spans AS s ON FALSE WHEN NOT MATCHED THEN INSERT *",
        "SELECT 1 INTO t",
        "WITH x AS (DELETE FROM spans RETURNING *) SELECT * FROM x",
        "WITH x AS (INSERT INTO spans SELECT * FROM spans RETURNING 1) SELECT * FROM x",
        "WITH x AS MATERIALIZED (UPDATE spans SET name = 'x' RETURNING 1) SELECT * FROM x",
        "SELECT * FROM (DELETE FROM spans RETURNING *)",
        "EXPLAIN ANALYZE DELETE FROM spans",
        "EXPLAIN (ANALYZE, FORMAT json) DELETE FROM spans",
        "/* SELECT */ DELETE FROM spans",
        "-- SELECT\nDELETE FROM spans",
        "SELECT 1; DELETE FROM spans",
        "SELECT 1;;DROP TABLE spans;",
        "SELECT 1 /* ; */; DROP TABLE spans --",
        "BEGIN; DELETE FROM spans; COMMIT",
        "COMMIT",
        "ROLLBACK",
        "ABORT",
        "PREPARE p AS DELETE FROM spans",
        "EXECUTE p",
        "EXECUTE IMMEDIATE 'DELETE FROM spans'",
        "DEALLOCATE p",
        "VACUUM",
        "ANALYZE",
        "CHECKPOINT",
        "FORCE CHECKPOINT",
        "SELECT nextval('s')",
        "SELECT setval('s', 1)",
        "SELECT write_log('x')",
        "SELECT setseed(0.5)",
    ],
    "files": [
        "COPY spans TO '{leak}'",
        "COPY (SELECT 1) TO '{leak}' (FORMAT csv)",
        "COPY spans FROM '{secret}'",
        "COPY spans TO '/dev/stdout'",
        "COPY FROM DATABASE evidence TO memory",
        "EXPORT DATABASE '{leak}'",
        "IMPORT DATABASE '{dir}'",
        "SELECT * FROM '{secret}'",
        "FROM '{secret}'",
        'FROM "{secret}"',
        "TABLE '{secret}'",
        "SELECT * FROM main.'{secret}'",
        "SELECT * FROM '{dir}/*.csv'",
        "SELECT * FROM ['{secret}']",
        "DESCRIBE '{secret}'",
        "DESCRIBE TABLE '{secret}'",
        "SUMMARIZE '{secret}'",
        "SHOW TABLES FROM '{secret}'",
        *(
            f"SELECT * FROM {function}('{{secret}}')"
            for function in (
                "read_text",
                "READ_TEXT",
                '"read_text"',
                "main.read_text",
                "system.main.read_text",
                "read_blob",
                "read_csv",
                "read_csv_auto",
                "read_single_csv_file",
                "read_json",
                "read_json_auto",
                "read_ndjson",
                "read_json_objects",
                "read_parquet",
                "parquet_scan",
                "parquet_metadata",
                "parquet_schema",
                "read_duckdb",
                "sniff_csv",
                "glob",
                "which_secret",
                "seq_scan",
                "query",
                "query_table",
                "read_xlsx",
                "st_read",
                "sqlite_scan",
                "postgres_scan",
                "iceberg_scan",
                "delta_scan",
                "read_arrow",
            )
        ),
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM query('FROM read_text(''{secret}'')')",
        "SELECT * FROM query_table(['{secret}'])",
        "SELECT (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM spans, LATERAL (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM spans WHERE EXISTS (FROM read_text('{secret}'))",
        "WITH RECURSIVE r AS (SELECT content FROM read_text('{secret}') UNION ALL FROM r) FROM r",
        "EXPLAIN SELECT * FROM read_csv('{secret}')",
        "EXPLAIN ANALYZE SELECT * FROM read_text('{secret}')",
        "PIVOT (FROM read_csv('{secret}')) ON a USING count(*)",
        "UNPIVOT (FROM read_csv('{secret}')) ON a, b",
        "SELECT json_serialize_plan('FROM read_csv(''{secret}'')')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{secret}'')'))",
        "PRAGMA json_execute_serialized_sql('{}')",
        "SELECT json_copy_strftime_if_date('x', 'y') FROM read_csv('{secret}')",
        "SELECT getenv('PROVENANCE_TEST_SECRET')",
        "SELECT main.getenv('PROVENANCE_TEST_SECRET')",
        "SELECT 'PROVENANCE_TEST_SECRET'.getenv()",
    ],
    "network, databases and extensions": [
        "ATTACH '{leak}'",
        "ATTACH '{db}' AS again",
        "ATTACH ':memory:' AS other",
        "ATTACH 'http://127.0.0.1:9/x.duckdb' AS other",
        "ATTACH 'postgres:host=127.0.0.1' AS other (TYPE postgres)",
        "DETACH evidence",
        "USE memory",
        "USE system.main",
        "INSTALL httpfs",
        "INSTALL httpfs FROM community",
        "INSTALL '{secret}'",
        "FORCE INSTALL json",
        "LOAD httpfs",
        "LOAD '{secret}'",
        "UPDATE EXTENSIONS",
        "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "SELECT * FROM read_text('https://127.0.0.1:9/')",
        "CREATE SECRET s (TYPE s3, KEY_ID 'x', SECRET 'y')",
        "CREATE PERSISTENT SECRET s (TYPE http)",
        "DROP SECRET s",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_extensions()",
        "SELECT * FROM duckdb_external_file_cache()",
        "SELECT * FROM register_external_resource('x', 'y')",
        "CALL create_external_resource('x')",
    ],
    "settings and the process": [
        "SET enable_external_access = true",
        "SET GLOBAL memory_limit = '100GB'",
        "SET SESSION threads = 64",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "RESET ALL",
        "SET VARIABLE x = 1",
        "SET schema = 'x'",
        "SET search_path = 'x'",
        "SET temp_directory = '{dir}'",
        "SET allowed_directories = ['/']",
        "PRAGMA memory_limit = '100GB'",
        "PRAGMA enable_external_access",
        "PRAGMA enable_profiling",
        "PRAGMA profiling_output = '{leak}'",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "CALL enable_logging()",
        "CALL force_checkpoint()",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM enable_profiling()",
        "SELECT * FROM checkpoint()",
        "SELECT * FROM truncate_duckdb_logs()",
        "SELECT * FROM duckdb_logs()",
        "SELECT * FROM duckdb_prepared_statements()",
        "SELECT * FROM duckdb_variables()",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM python_map_function(1)",
        "SELECT * FROM python_arrow_scan(1)",
        "SELECT * FROM store",
        "SELECT * FROM self",
        "SELECT sleep_ms(100000)",
        "SELECT pg_sleep(100)",
        "KILL 1",
        "SELECT pg_terminate_backend(1)",
    ],
    "no SQL": [
        "",
        ";",
        "--",
        "\0",
        "SELECT 1\0; DROP TABLE spans",
        "SELECT ?",
        "SELECT $1",
        "SELECT " + "(" * 20_000 + "1",
    ],
}


@pytest.mark.parametrize(
    "sql", [pytest.param(sql, id=f"{kind}: {sql[:60]!a}") for kind, sqls in ATTACKS.items() for sql in sqls]
)
def test_an_attack_is_refused_and_changes_nothing(target: Target, sql: str) -> None:
    answer = target.send(sql)

    assert answer.status_code == 400, answer.content[:200]
    assert SECRET not in answer.text
    assert answer.json()["error"]
    assert "Traceback" not in answer.text
    assert not target.leak.exists()


def test_the_attacks_changed_nothing_together(target: Target) -> None:
    """All of them between two fingerprints: what one test would not see, this one does."""
    before = target.fingerprint()
    for sqls in ATTACKS.values():
        for sql in sqls:
            target.send(sql)

    assert target.fingerprint() == before
    assert target.collector.spans() == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b'{"sql": null}', b'{"sql": ["SELECT 1"]}', b'{"sql": "SELECT 1", "params": [1]}', b"\xff", b'{"sql"',
        b"[" * 100_000, b'{"sql": "\\ud800"}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_question(target: Target, body: bytes) -> None:
    with Client(READ).http() as http:
        headers = {"content-type": "application/json", "authorization": f"Bearer {READ}"}
        answer = http.post(f"{target.collector.url}/api/v1/query", content=body, headers=headers)

    assert answer.status_code == 400
    assert "Traceback" not in answer.text


def resident_bytes(line_name: Literal["VmHWM", "VmRSS"]) -> int:
    """This process's resident memory: the peak, or now."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[line_name].split()[0]) * 1024


def doubling(step: str, start: str, times: int) -> str:
    steps = ", ".join(f"a{n + 1} AS (SELECT {step} AS s FROM a{n})" for n in range(times))
    return f"WITH a0 AS (SELECT {start} AS s), {steps} SELECT len(s) FROM a{times}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        ENDLESS,
        "SELECT * FROM range(1000000000000)",
        "SELECT * FROM range(1001)",
        "SELECT string_agg('x' || range, '') FROM range(3000000)",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT histogram(range) FROM range(1000000000)",
        "SELECT DISTINCT a.range, b.range FROM range(100000) a, range(100000) b",
        "SELECT a.range FROM range(100000) a, range(100000) b ORDER BY hash(a.range + b.range)",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
        "WITH RECURSIVE r(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM r) SELECT max(length(s)) FROM r",
        "WITH RECURSIVE r(l) AS (SELECT [1] UNION ALL SELECT list_concat(l, l) FROM r) SELECT max(len(l)) FROM r",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT a.n FROM r a, r b) SELECT count(*) FROM r",
        doubling("s || s", "'x'", 40),
        doubling("list_concat(s, s)", "[1]", 40),
        doubling("[s, s]::VARCHAR", "'x'", 40),
        doubling("hex(s)", "'x'", 40),
        "SELECT " + "hex(" * 30 + "name" + ")" * 30 + " FROM spans",
        "SELECT replace(replace(replace(name, 'a', name), 'b', name), 'c', name) FROM spans",
        "SELECT [[[x for x in range(5000)] for y in range(5000)] for z in range(5000)]",
        "SELECT length(repeat('x', 3000000000))",
        "SELECT json_serialize_plan('SELECT repeat(''x'', 3000000000)', optimize := true)",
        "SELECT regexp_matches(repeat('a', 10000), '(a|aa)+$') FROM range(100000000)",
        "EXPLAIN ANALYZE " + ENDLESS,
        "SELECT (SELECT count(*) FROM range(1000000000000) WHERE range % (a.range + 1) = 0) FROM range(10) a",
    ],
)  # fmt: skip
def test_a_runaway_query_ends_in_time_and_memory(target: Target, sql: str) -> None:
    """DuckDB's own limit is 1 GB in a collector; what lies around it must stay small.

    The collector is in the process that runs the tests, so it is what the query adds that counts.
    """
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): "reset the peak resident set size"
    before = resident_bytes("VmRSS")
    answer = target.send(sql)

    assert answer.status_code in {400, 504}, answer.content[:200]
    assert answer.json()["error"]
    assert resident_bytes("VmHWM") - before < 1_500_000_000
    assert target.send("SELECT 1").status_code == 200


@pytest.mark.slow
def test_after_runaway_queries_the_collector_still_takes_spans(target: Target) -> None:
    target.send(ENDLESS)
    token = "write-" + "w" * 20

    assert Client(token).send_grpc(target.collector) == "OK"
    assert json.loads(Client(READ).get(target.collector, "/api/v1/status").content)["spans"] >= 1

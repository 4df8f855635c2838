"""The tables are written once: DDL, Arrow and Ibis must say the same of every column."""

import duckdb
import ibis
import pyarrow as pa
import pytest

from collector import schema


@pytest.mark.parametrize("table", sorted(schema.TABLES))
def test_ddl_arrow_and_ibis_agree(table: str) -> None:
    con = duckdb.connect()
    con.execute(schema.ddl(table))
    described = {name: kind for name, kind, *_ in con.execute(f"DESCRIBE {table}").fetchall()}

    assert described == {column.name: column.type for column in schema.TABLES[table]}
    assert schema.arrow_schema(table).names == list(described)
    assert ibis.table(schema.ibis_schema(table), name=table).columns == tuple(described)


@pytest.mark.parametrize("table", sorted(schema.TABLES))
def test_an_arrow_table_of_the_schema_is_accepted_by_the_database(table: str) -> None:
    con = duckdb.connect()
    con.execute(schema.ddl(table))
    incoming = pa.Table.from_pylist([], schema=schema.arrow_schema(table))
    con.register("incoming", incoming)
    con.execute(f"INSERT INTO {table} SELECT * FROM incoming")

    assert con.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.parametrize("table", sorted(schema.TABLES))
def test_column_names_are_unique_and_documented(table: str) -> None:
    columns = schema.TABLES[table]

    assert len({c.name for c in columns}) == len(columns)
    assert all(c.doc for c in columns)


def test_hot_attribute_keys_are_claimed_once() -> None:
    keys = [key for a in schema.HOT_ATTRIBUTES for key in (a.key, *a.older)]

    assert len(set(keys)) == len(keys)

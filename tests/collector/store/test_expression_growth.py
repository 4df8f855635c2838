"""No single expression makes a value so large that no limit could stop it; what people write is answered."""

import pytest

from collector.errors import QueryError
from collector.store.database import Store
from collector.store.growth import MAX_FACTOR
from collector.store.reader import Reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(Store.open(tmp_path_factory.mktemp("growth") / "evidence.duckdb"))


def nested(function: str, depth: int, inner: str = "s") -> str:
    return f"SELECT {function}(" + f"{function}(" * (depth - 1) + inner + ")" * depth + " FROM (SELECT 'x' AS s)"


@pytest.mark.parametrize(
    "sql",
    [
        nested("hex", 2),
        nested("upper", 150),
        "SELECT " + ", ".join("hex('x')" for _ in range(100)),
        "SELECT regexp_replace(regexp_replace('a/b?c', '^/', ''), '[?].*$', ''), replace('a-b', '-', '')",
        "SELECT replace('a.b', '.', ' -> '), regexp_replace('ab', '(a)(b)', '\\2\\1')",
        "SELECT [x + 1 for x in [1, 2]], [[x || 'a' for x in xs] for xs in [['a'], ['b']]]",
        "SELECT list_filter(range(10), lambda x: len(range(5)) > x), range(5000)",
        "SELECT list_filter(range(5000), lambda x: x % 2 = 0)",
        "SELECT to_json({'a': 1}), hex(md5('x'))",
        "SELECT hex(a) AS a FROM (" * 7 + "SELECT 'x' AS a" + ")" * 7,
    ],
)
def test_what_people_write_is_answered(reader: Reader, sql: str) -> None:
    assert reader.query(sql).num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        nested("hex", 7),
        nested("HEX", 30),
        nested("main.hex", 30),
        nested("bin", 3),
        nested("url_encode", 5),
        nested("to_json", 4),
        "SELECT ('x').hex().hex().hex().hex().hex().hex().hex()",
        nested("hex", 7, "(s || s)"),
        nested("hex", 3).replace("hex(s)", "upper(CASE WHEN s > '' THEN bin(bin(s)) END)"),
        "SELECT replace(s, 'x', s) FROM (SELECT 'x' AS s)",
        "SELECT replace('x', 'x', concat('y', 'z'))",
        f"SELECT replace('x', 'x', '{'y' * (MAX_FACTOR + 1)}')",
        "SELECT replace(replace(replace('x', 'x', 'yyyyyyyy'), 'y', 'zzzzzzzz'), 'z', 'xx')",
        "SELECT regexp_replace('abc', '', 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy', 'g')",
        "SELECT regexp_replace(s, '(.*)', s) FROM (SELECT 'x' AS s)",
        "SELECT [[x + y for x in range(5000)] for y in range(5000)]",
        "SELECT [[y for y in range(5000)] for x in range(5000)]",
        "SELECT [[[x for x in a] for y in a] for z in a] FROM (SELECT [1] AS a)",
        "SELECT list_transform(range(5000), lambda x: list_transform(range(5000), lambda y: [x, y]))",
        "SELECT [range(5000) for x in l] FROM (SELECT list(range) AS l FROM range(100000))",
        "SELECT list_transform(range(5000), lambda x: range(5000))",
        "SELECT list_transform(range(1000), lambda x: repeat('x', 1000))",
        "EXPLAIN ANALYZE " + nested("hex", 30),
        f"SELECT * FROM (VALUES ('x')) AS t(s) WHERE {'hex(' * 30}s{')' * 30} = 'x'",
    ],
)  # fmt: skip
def test_what_would_grow_without_limit_is_refused_before_it_runs(reader: Reader, sql: str) -> None:
    with pytest.raises(QueryError, match=r"times longer|with a literal|times a row"):
        reader.query(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 20_000,
        "SELECT " + "(" * 20_000 + "FROM" + ")" * 20_000,
        "SELECT " + "(')'||" * 20_000,
        "SELECT " + "(/*)*/" * 20_000,
        'SELECT (")"' * 20_000,
        "SELECT é, " + "[{'a': (" * 200,
        "SELECT )" + "(" * 20_000,
    ],
    ids=lambda sql: sql[:20],
)
def test_deep_brackets_never_reach_the_parser(reader: Reader, sql: str) -> None:
    with pytest.raises(QueryError, match="more than 200 deep"):
        reader.query(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 150 + "1" + ")" * 150,
        f"SELECT '{'(' * 1000}'",
        f"SELECT 1 -- {'(' * 1000}",
        f"SELECT /* {'(' * 1000} */ $$ {'[' * 1000} $$",
        "SELECT " + ", ".join("(1)" for _ in range(1000)),
    ],
    ids=lambda sql: sql[:20],
)
def test_brackets_in_texts_and_side_by_side_are_not_deep(reader: Reader, sql: str) -> None:
    assert reader.query(sql).num_rows == 1


def test_a_query_that_is_no_text_is_refused(reader: Reader) -> None:
    with pytest.raises(QueryError, match="no text"):
        reader.query("SELECT '\ud800'")

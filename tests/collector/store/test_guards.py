"""What a function may be given by whoever asks over the network: short lists, maps and texts as ever, long ones not at all."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from collector.errors import QueryError
from collector.store.database import Store
from collector.store.guards import LOOKING, MAX_COMPARED, MAX_ELEMENTS, MAX_TEXT, guarded
from collector.store.reader import Limits, Reader

LONG = f"(SELECT list(range) FROM range({MAX_ELEMENTS + 1}))"
SHORT = f"(SELECT list(range) FROM range({MAX_ELEMENTS}))"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("guards") / "evidence.duckdb") as opened:
        yield opened


@pytest.fixture(scope="module")
def reader(store: Store) -> Reader:
    return Reader(store, Limits(guarded=True))


@pytest.mark.parametrize(
    "call",
    [
        "map({0}, {0})",
        "MAP({0}, {0})",
        "list_distinct({0})",
        "main.list_distinct({0})",
        "{0}.list_distinct()",
        "list_unique({0})",
        "list_sort({0})",
        "list_sum({0})",
        "list_aggregate({0}, 'sum')",
        "list_intersect({0}, [1])",
        "list_intersect([1], {0})",
        "list_has_all({0}, {0})",
        "list_has_any([1], {0})",
        "list_sort(flatten([{0}, {0}]))",
        "list_transform({0}, lambda x: x + 1)",
        "[x + 1 FOR x IN {0}]",
        "array_to_string({0}, ',')",
    ],
)
def test_a_long_list_is_refused_however_the_function_is_called(reader: Reader, call: str) -> None:
    reader.query(f"SELECT {call.format('[1, 2]')}")
    reader.query(f"SELECT {call.format('l')} FROM (SELECT [1, 2] AS l)")
    with pytest.raises(QueryError, match=f"more than {MAX_ELEMENTS:,} elements"):
        reader.query(f"SELECT {call.format('l')} FROM (SELECT {LONG} AS l)")


@pytest.mark.parametrize("call", ["map_keys({0})", "map_entries({0})", "map_concat({0}, {0})"])
def test_so_is_a_long_map(store: Store, reader: Reader, call: str) -> None:
    reader.query(f"SELECT {call.format('MAP {1: 2}')}")
    Reader(store).query(f"SELECT {call.format(f'map({LONG}, {LONG})')}")
    with pytest.raises(QueryError, match="more than"):
        reader.query(f"SELECT {call.format('map_from_entries([(x, x) FOR x IN l])')} FROM (SELECT {LONG} AS l)")


@pytest.mark.parametrize(
    ("call", "most"),
    [
        ("levenshtein({0}, {0})", MAX_COMPARED),
        ("jaro_winkler_similarity({0}, 'x')", MAX_COMPARED),
        ("string_split({0}, 'b')", MAX_TEXT),
    ],
)
def test_a_long_text_is_refused_where_it_is_compared_or_taken_apart(reader: Reader, call: str, most: int) -> None:
    text = "(SELECT string_agg('a', '') FROM range({0}))"
    reader.query(f"SELECT {call.format('t')} FROM (SELECT {text.format(most)} AS t)")
    with pytest.raises(QueryError, match=f"more than {most:,} characters"):
        reader.query(f"SELECT {call.format('t')} FROM (SELECT {text.format(most + 1)} AS t)")


def test_what_is_not_longer_is_answered_as_without_guards(store: Store, reader: Reader) -> None:
    sql = (
        f"SELECT list_sum({SHORT}) AS a, len(list_distinct({SHORT})) AS b, map([1], ['x'])[1] AS c, "
        "list_transform([1, NULL], lambda x: x + 1) AS d, list_sort([2, 1], 'DESC') AS e, NULL::INT[] || [1] AS f, "
        "list_aggregate([1, 2], 'string_agg', '-') AS g, [x FOR x IN [1, 2, 3] IF x > 1] AS h"
    )
    assert reader.query(sql).to_pylist() == Reader(store).query(sql).to_pylist()


@pytest.mark.parametrize(
    "name", ["system.main.list_distinct", "SYSTEM.main.list_distinct", '"system".main.list_distinct']
)
def test_nobody_goes_past_the_guards(reader: Reader, name: str) -> None:
    with pytest.raises(QueryError, match=r"without system\."):
        reader.query(f"SELECT {name}([1])")


def test_a_file_of_ones_own_has_no_guards(store: Store) -> None:
    assert Reader(store).query(f"SELECT len(list_distinct({LONG})) AS n").to_pylist() == [{"n": MAX_ELEMENTS + 1}]


def test_whatever_takes_a_list_of_anything_is_guarded_or_only_looks_at_it() -> None:
    """A function that a later DuckDB brings is guarded without anybody's doing."""
    with duckdb.connect(":memory:") as connection:
        rows = connection.execute(
            "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
            "WHERE function_type = 'scalar' AND parameter_types[1] = 'T[]'"
        ).fetchall()
    taking = {name for (name,) in rows}
    assert {"list_distinct", "list_has_all", "list_intersect"} <= taking
    assert taking - set(guarded()) <= LOOKING | {"&&", "repeat"}, "these take geometries or texts too"


def test_a_guard_lasts_for_one_question(tmp_path: Path, reader: Reader, store: Store) -> None:
    reader.query("SELECT list_distinct([1])")
    cursor = store.cursor()
    found = cursor.execute(
        "SELECT count(*) FROM duckdb_functions() WHERE NOT internal AND function_name = 'list_distinct'"
    )
    assert found.fetchone() == (0,)
    cursor.close()

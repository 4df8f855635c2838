"""How long the lists, maps and texts may be that one call of a function is given, looked at while the query runs.

DuckDB heeds neither interrupts nor its memory limit inside one call: `map(l, l)` of a list of 50 million takes 6.8 GB for minutes,
`levenshtein` of two long texts the time of their product. So whoever asks over the network calls such functions through macros of the
connection's own that bear their names. DuckDB finds a temporary macro before its own function wherever the name is written: with
`main.` before it, as a method, as an operator, as the literal `MAP {...}`, in a comprehension, inside DuckDB's own macros; only not
behind `system.`, which is refused.

    guards(names) -> the CREATE statements of those that a query with these functions needs
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, Final, Literal

import duckdb

from collector.store.growth import FACTORS

MAX_ELEMENTS: Final = 10_000
"""Of one list or map. DuckDB evaluates 2,048 rows at once: with as many elements in each, a call takes some seconds."""

MAX_TEXT: Final = 256 * 1024
"""Characters of a text that a function makes longer, or takes apart."""

MAX_COMPARED: Final = 500
"""Characters of texts of which a function compares each with each: at once, a thousand million pairs at most."""

Kind = Literal["list", "map", "text", "compared"]

_TOO_LONG: Final[dict[Kind, str]] = {
    "list": f"system.main.len(value) > {MAX_ELEMENTS} THEN system.main.error('a list of more than {MAX_ELEMENTS:,} elements is not given "
    "to {name} here: use unnest() and GROUP BY, or DISTINCT and FILTER where it is made')",
    "map": f"system.main.cardinality(value) > {MAX_ELEMENTS} THEN system.main.error('a map of more than {MAX_ELEMENTS:,} entries is not "
    "given to {name} here')",
    "text": f"system.main.len(value) > {MAX_TEXT} THEN system.main.error('a text of more than {MAX_TEXT:,} characters is not given to "
    "{name} here: take a part of it with left()')",
    "compared": f"system.main.len(value) > {MAX_COMPARED} THEN system.main.error('a text of more than {MAX_COMPARED:,} characters is not "
    "given to {name} here: take a part of it with left()')",
}

LOOKING: Final = frozenset({
    "len", "length", "char_length", "character_length", "array_length", "cardinality", "list_extract", "array_extract", "list_element",
    "element_at", "map_extract", "map_extract_value", "map_contains", "list_contains", "list_has", "array_contains", "array_has",
    "list_position", "list_indexof", "array_position", "array_indexof", "contains", "+", "add", "switch",
})  # fmt: skip
"""They look at one element after the other, hundreds of millions a second, and build nothing; `switch` takes a constant map."""

_COMPARING: Final = frozenset({
    "levenshtein", "editdist3", "damerau_levenshtein", "jaccard", "jaro_similarity", "jaro_winkler_similarity",
})  # fmt: skip

_SPLITTING: Final = frozenset({
    "split", "str_split", "string_split", "string_to_array", "str_split_regex", "string_split_regex", "regexp_split_to_array",
    "regexp_extract_all", "unbin", "unhex", "from_base64", "from_hex", "from_binary",
})  # fmt: skip

_MOST_ARGUMENTS: Final = 16
"""Of a function that takes any number of lists."""

_CALLED: Final = re.compile(r'(\w+)"?\(')


def guards(names: Iterable[str]) -> list[str]:
    """The statements that guard what is called by these names, in lower case, and by DuckDB's macros among them."""
    macros, statements = _macros(), _statements()
    called = set(names)
    waiting = list(called & macros.keys())
    while waiting:
        inside = macros[waiting.pop()] - called
        called |= inside
        waiting += inside & macros.keys()
    return [statements[name] for name in sorted(called & statements.keys())]


def guarded() -> Collection[str]:
    """The names of all functions that have a guard."""
    return _statements().keys()


def _checked(parameter: str, kind: Kind | None, name: str) -> str:
    """The argument, or an error where it is too long. Its text stands here once: calls inside each other would else double it at each."""
    if kind is None:
        return parameter
    too_long = _TOO_LONG[kind].replace("{name}", name.replace("'", "''"))
    return f"system.main.list_transform(system.main.list_value({parameter}), lambda value: CASE WHEN {too_long} ELSE value END)[1]"


def _macro(name: str, overloads: Sequence[Sequence[Kind | None]]) -> str:
    """A temporary macro of the function's name, with one overload for each number of arguments."""
    quoted = f'"{name}"'
    bodies = []
    for kinds in overloads:
        parameters = [f"argument_{n}" for n in range(len(kinds))]
        given = ", ".join(_checked(p, kind, name) for p, kind in zip(parameters, kinds, strict=True))
        bodies.append(f"({', '.join(parameters)}) AS system.main.{quoted}({given})")
    return f"CREATE OR REPLACE TEMP MACRO {quoted}{', '.join(bodies)}"


@cache
def _statements() -> dict[str, str]:
    """The guard of every function of this DuckDB that takes a list or a map, or makes something of a text."""
    rows = _asked(
        "SELECT lower(function_name), parameter_types, varargs FROM duckdb_functions() WHERE function_type = 'scalar'"
    )
    found: dict[str, list[tuple[list[str], str | None]]] = defaultdict(list)
    for name, types, more in rows:
        if name not in LOOKING:
            found[name].append((types, more))
    statements = {}
    for name, signatures in found.items():
        overloads = [
            overload for n in range(_MOST_ARGUMENTS + 1) if (overload := _overload(name, signatures, n)) is not None
        ]
        if any(kind is not None for kinds in overloads for kind in kinds):
            statements[name] = _macro(name, overloads)
    return statements


def _overload(
    name: str, signatures: Sequence[tuple[Sequence[str], str | None]], size: int
) -> Sequence[Kind | None] | None:
    """What to look at in each of so many arguments; None where the function does not take so many."""
    fitting = [
        [*types, *[more] * (size - len(types))]
        for types, more in signatures
        if len(types) == size or (more is not None and len(types) < size)
    ]
    if not fitting:
        return None
    return [_kind(name, position, {types[position] for types in fitting}) for position in range(size)]


def _kind(name: str, position: int, types: Collection[str | None]) -> Kind | None:
    """How the length of what may have these types is asked for; None where it may have one that has none."""
    if all(type_ is not None and type_.endswith("[]") for type_ in types):
        return "list"
    if all(type_ is not None and type_.startswith("MAP(") for type_ in types):
        return "map"
    if types == {"VARCHAR"} and name in _COMPARING:
        return "compared"
    if types == {"VARCHAR"} and position == 0 and (name in _SPLITTING or name in FACTORS):
        return "text"
    return None


@cache
def _macros() -> dict[str, frozenset[str]]:
    """What DuckDB's own macros call."""
    rows = _asked(
        "SELECT lower(function_name), lower(macro_definition) FROM duckdb_functions() WHERE function_type = 'macro'"
    )
    called: dict[str, frozenset[str]] = defaultdict(frozenset)
    for name, definition in rows:
        called[name] |= frozenset(_CALLED.findall(definition))
    return dict(called)


def _asked(sql: str) -> list[tuple[Any, ...]]:
    connection = duckdb.connect(":memory:")
    try:
        rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
    finally:
        connection.close()
    return rows

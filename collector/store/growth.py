"""How many times larger than its input one expression may make a value, judged by the syntax tree that DuckDB will run.

Between the operators of a query DuckDB looks at its memory limit and at interrupts; inside one expression at neither, so
`hex(hex(... ))` thirty deep takes gigabytes and half a minute, whatever the limits are. So the factors of the functions that
lie inside each other are multiplied here, before anything runs. Pure.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from collector.errors import QueryError

FACTORS: Final[dict[str, int]] = {
    "hex": 2, "to_hex": 2, "bin": 8, "to_binary": 8, "to_base64": 2, "base64": 2, "url_encode": 3, "regexp_escape": 2,
    "to_json": 6, "json_quote": 6, "json_array": 6, "json_object": 6, "row_to_json": 6, "array_to_json": 6,
    "json_pretty": 10,
}  # fmt: skip
"""How much longer than its argument a function's text may be; for JSON, a control character becomes `\\u0001`."""

REPLACING: Final = frozenset({"replace", "regexp_replace"})
"""What they put in may be longer than what they take out, so it must be a literal."""

BUILDING: Final = frozenset({
    "range", "generate_series", "repeat", "lpad", "rpad", "list_resize", "array_resize", "bitstring",
})  # fmt: skip
"""What they build, as long as a literal says, is built at each pass of a comprehension."""

MAX_FACTOR: Final = 64
MAX_PASSES: Final = 10_000
"""How often the innermost of nested list comprehensions may run for one row."""

_UNKNOWN_LENGTH: Final = 100
"""A list in a column is taken to have this many elements: two comprehensions inside each other are answered, three are not."""

_CALL: Final = re.compile(rf'"function_name":"(?:{"|".join((*FACTORS, *REPLACING))})"', re.IGNORECASE)
_BUILDING_CALL: Final = re.compile(rf'"function_name":"(?:{"|".join(BUILDING)})"', re.IGNORECASE)
_LAMBDA: Final = '"class":"LAMBDA"'


def literal(expression: Mapping[str, Any]) -> str | int | None:
    """The value of a literal text or integer, None for everything else."""
    match expression.get("literal"):
        case {"kind": "STRING", "text": str(text)}:
            return text
        case {"kind": "INTEGER", "text": str(text)} if text.isdecimal() and len(text) < 20:
            return int(text)
    match expression.get("value"):  # how DuckDB 1.5 has it
        case {"is_null": False, "value": str() | int() as value}:
            return value
    return None


def arguments(call: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The expressions that a function is given; DuckDB 1.5 has them as `children`."""
    return [argument.get("expression", argument) for argument in call.get("arguments", call.get("children", ()))]


def check_growth(tree: str) -> None:
    """Raise QueryError where one expression could make a value of unlimited size; `tree` is what json_serialize_sql gives."""
    if _is_harmless(tree):
        return
    try:
        document = json.loads(tree)
    except RecursionError as e:
        raise QueryError("the expression is nested too deeply to be judged; write it in steps, with WITH") from e
    # Of each node: how many times longer what is around it makes a text, how often it runs for a row, and how often a
    # comprehension's body below it runs for each of these.
    waiting: list[tuple[Any, int, int, int]] = [(document, 1, 1, 1)]
    while waiting:
        node, factor, passes, body = waiting.pop()
        if isinstance(node, dict):
            if "select_list" in node:  # a query's own operators: there the limits hold
                factor = passes = body = 1
            if node.get("class") == "LAMBDA":
                passes, body = passes * body, 1
                _check_passes(passes)
            if "function_name" in node:
                factor, body = factor * _factor(node), _length(node)
                _check_factor(node, factor)
                if passes > 1:
                    _check_passes(passes * _built(node))
        waiting.extend((child, factor, passes, body) for child in _children(node))


def _check_factor(call: Mapping[str, Any], factor: int) -> None:
    if factor > MAX_FACTOR:
        raise QueryError(
            f"an expression may make a text at most {MAX_FACTOR} times longer, and these functions inside each other "
            f"({call['function_name']} the innermost) make it {factor}; write it in steps, with WITH"
        )


def _check_passes(passes: int) -> None:
    if passes > MAX_PASSES:
        raise QueryError(
            f"list comprehensions inside each other may run {MAX_PASSES:,} times a row, these run {passes:,}; "
            "use unnest() and GROUP BY"
        )


def _is_harmless(tree: str) -> bool:
    """Whether even all calls of the tree inside each other would stay below the limits.

    A detector's tree has two million characters, and no call in it makes a text longer: it need not be walked.
    """
    lambdas = tree.count(_LAMBDA)
    if lambdas > 1 or (lambdas and _BUILDING_CALL.search(tree)):
        return False
    product = 1
    for call in _CALL.finditer(tree):
        try:
            node, _ = json.JSONDecoder().raw_decode(tree, tree.rfind("{", 0, call.start()))
        except (ValueError, RecursionError):
            return False
        product *= _factor(node)
        if product > MAX_FACTOR:
            return False
    return True


def _children(node: object) -> Iterator[object]:
    match node:
        case dict():
            yield from node.values()
        case list():
            yield from node


def _factor(node: Mapping[str, Any]) -> int:
    name = str(node.get("function_name", "")).lower()
    if name not in REPLACING:
        return FACTORS.get(name, 1)
    given = [literal(argument) for argument in arguments(node)]
    match given:
        case [_, _, ""] | [_, _, "", *_]:
            return 1
        case [_, str(old), str(new), *_] if name == "replace" and old:
            return -(-len(new) // len(old))
        case [_, _, str(new), *_]:
            # A pattern may match between any two characters, and each \1 may put all of a match there.
            return 1 + len(new)
        case _:
            raise QueryError(f"{name} is answered with a literal for what it puts in; write the cases with CASE")


def _length(call: Mapping[str, Any]) -> int:
    """Of the list that a comprehension goes through; 1 where the call is none."""
    given = arguments(call)
    if not any(argument.get("class") == "LAMBDA" for argument in given):
        return 1
    return max(_UNKNOWN_LENGTH, *_sizes(given[0]), len(arguments(given[0])))


def _built(call: Mapping[str, Any]) -> int:
    """How many elements or characters a call builds out of nothing."""
    return max(1, *_sizes(call)) if str(call["function_name"]).lower() in BUILDING else 1


def _sizes(call: Mapping[str, Any]) -> list[int]:
    """The literal integers that a function is given, 1 where there are none."""
    return [abs(n) for argument in arguments(call) if isinstance(n := literal(argument), int)] or [1]

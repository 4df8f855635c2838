"""What people type to find a span: an id, an attribute, or text; and whether a span has it.

What was typed reaches SQL as literals only, in the blanks that `matches` leaves.
"""

import re
from dataclasses import dataclass
from functools import reduce
from typing import Final, Literal
from uuid import UUID

import ibis
import ibis.expr.types as ir

from collector.forensics.short_cuts import ShortCuts
from collector.forensics.statements import TRACE_ID, number, text
from collector.schema import HOT_ATTRIBUTES

SEARCHED: Final = (
    "name",
    "service_name",
    "status_message",
    "url_full",
    "url_path",
    "http_route",
    "rpc_service",
    "rpc_method",
    "server_address",
    "error_type",
    "user_agent_original",
    "provenance_request_hash",
    "provenance_request_id",
)
"""Where text is looked for."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the text of a filter means, without its values: the shape of a statement.

    Attributes:
        kind: Nothing, an id, an attribute, or text that may be an attribute too.
        column: The attribute's own column.
        is_number: Whether that column and the value both are integers.
        maps: The maps that may have the attribute.
    """

    kind: Literal["nothing", "trace_id", "span_id", "attribute", "anywhere"] = "nothing"
    column: str | None = None
    is_number: bool = False
    maps: tuple[str, ...] = ()

    @property
    def is_impossible(self) -> bool:
        """Whether no span can have it."""
        return self.kind == "attribute" and self.column is None and not self.maps


def words_of(given: str | None) -> str:
    """What was typed, without the space around it."""
    return (given or "").strip()


def meaning_of(given: str | None, known: ShortCuts) -> Meaning:
    """What a text means, and where to look for it."""
    words = words_of(given)
    if not words:
        return Meaning()
    if re.fullmatch(r"[0-9a-fA-F]{32}", words):
        return Meaning("trace_id")
    if re.fullmatch(r"[0-9a-fA-F]{16}", words):
        return Meaning("span_id")
    key, separator, value = (part.strip() for part in words.partition("="))
    if not separator or not key:
        return Meaning("anywhere")
    hot = next((a for a in HOT_ATTRIBUTES if a.key == key), None)
    is_attribute = hot is not None or re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)+", key)
    maps = ("attributes", "attributes_json") if known.keys is None else tuple(sorted(known.keys.get(key, ())))
    return Meaning(
        "attribute" if is_attribute else "anywhere",
        None if hot is None else hot.column,
        hot is not None and hot.type == "BIGINT" and re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) is not None,
        maps,
    )


def columns_of(meaning: Meaning) -> list[str]:
    """The columns that `matches` reads."""
    asked = [*meaning.maps, *([] if meaning.column is None else [meaning.column])]
    return asked + {"span_id": ["span_id"], "anywhere": list(SEARCHED)}.get(meaning.kind, [])


def matches(table: ir.Table, meaning: Meaning) -> list[ir.BooleanValue]:
    """What must hold of a span, with blanks for what was typed: words (in lower case), key, is_, value, span_id, the trace id."""
    match meaning.kind:
        case "nothing":
            return []
        case "trace_id":
            return [table.trace_id == ibis.literal(UUID(TRACE_ID), "uuid")]
        case "span_id":
            return [table.span_id == ibis.literal(number("span_id"), "uint64")]
        case "attribute":
            return [_any([*_own_column(table, meaning), *_in_maps(table, meaning)])]
        case "anywhere":
            words = [table[c].fill_null("").lower().contains(text("words")) for c in SEARCHED]
            return [_any([*words, *_own_column(table, meaning), *_in_maps(table, meaning)])]


def _any(parts: list[ir.BooleanValue]) -> ir.BooleanValue:
    return reduce(lambda a, b: a | b, parts)


def _own_column(table: ir.Table, meaning: Meaning) -> list[ir.BooleanValue]:
    if meaning.column is None:
        return []
    column = table[meaning.column]
    if meaning.is_number:
        return [(column == ibis.literal(number("value"), "int64")).fill_null(False)]
    return [(column.cast("string") == text("is_")).fill_null(False)]


def _in_maps(table: ir.Table, meaning: Meaning) -> list[ir.BooleanValue]:
    # The explicit test for NULL keeps DuckDB 2.0.0 from failing where a whole column of maps is NULL. To look at the values alone takes
    # half of what the key takes, and hardly any span has the value.
    maps = [table[name] for name in meaning.maps]
    value = text("is_")
    return [
        (m.notnull() & _has_value(m, value).ifelse(m.get(text("key")) == value, False)).fill_null(False) for m in maps
    ]


@ibis.udf.scalar.builtin(name="map_contains_value", signature=(("map<string, string>", "string"), "boolean"))  # type: ignore[untyped-decorator]
def _has_value(pairs: dict[str, str], value: str) -> bool:
    """Whether some key has the value."""
    raise NotImplementedError  # Ibis replaces the call by the engine's function

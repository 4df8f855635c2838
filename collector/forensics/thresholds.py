"""The detectors' thresholds as TOML: read by reflection from the frozen parameter classes, so that there is one list of them.

    [shadow]                    ShadowParams            [shadow.coverage]   the classes within it, as tables of their own
    [latency]                   LatencyParams           [latency.shift]
    [egress]                    EgressParams

    parse_thresholds(text, name=...) -> Thresholds      raises ConfigError naming file, key, what was expected and the nearest key
    listed() -> every threshold with its default, and what its class's docstring says of it

A key is the field's name. What ends in `_ns` may be written as an integer of nanoseconds or as a text with a unit ("15s", "250ms",
"2m"). Parameters that are no thresholds (an allow-list, a baseline window) have flags of their own and are none here.
"""

import dataclasses
import difflib
import inspect
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

from collector.errors import ConfigError
from collector.forensics.egress import EgressParams
from collector.forensics.latency import LatencyParams
from collector.forensics.shadow import ShadowParams

_UNITS_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3_600 * 10**9,
    "d": 86_400 * 10**9,
}
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(ns|us|µs|ms|s|m|h|d)")
_MOST_NS: Final = 366 * _UNITS_NS["d"]
_MOST: Final = 10**12
_SCALARS: Final = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The parameters of every detector, by the name of their TOML table; as they come, the defaults.

    Attributes:
        shadow: For `examine_shadow`.
        latency: For `find_latency`.
        egress: For `examine_egress`.
    """

    shadow: ShadowParams = field(default_factory=ShadowParams)
    latency: LatencyParams = field(default_factory=LatencyParams)
    egress: EgressParams = field(default_factory=EgressParams)


@dataclass(frozen=True, slots=True)
class Threshold:
    """One threshold, as it is listed.

    Attributes:
        table: `latency.shift`.
        name: The key in it.
        value: As it stands.
        expected: What it may be, for messages: `a number`.
        doc: What its class's docstring says of it, on one line.
    """

    table: str
    name: str
    value: object
    expected: str
    doc: str


def parse_thresholds(text: str, *, name: str) -> Thresholds:
    """The thresholds of a TOML text, which need not name all; raises ConfigError, whose message begins with `name`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{name}: not TOML: {e}") from e
    thresholds: Thresholds = _filled(Thresholds(), document, name, "")
    return thresholds


def listed(thresholds: Thresholds | None = None, kind: str | None = None) -> list[Threshold]:
    """Every threshold as it stands, in the order of the classes; of one kind where it is named."""
    given = thresholds or Thresholds()
    return [
        one
        for part in fields(given)
        if kind in {None, part.name}
        for one in _listed(getattr(given, part.name), part.name)
    ]


def toml_value(value: object, name: str) -> str:
    """The value as TOML, with a unit where that reads better."""
    match value:
        case bool():
            return str(value).lower()
        case int() if name.endswith("_ns") and value:
            unit = next(u for u in ("d", "h", "m", "s", "ms", "us", "ns") if value % _UNITS_NS[u] == 0)
            return f'"{value // _UNITS_NS[unit]}{unit}"'
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case tuple() | list():
            return "[" + ", ".join(toml_value(item, "") for item in value) + "]"
        case _:
            return str(value)


def _filled(params: Any, table: Mapping[str, object], name: str, prefix: str) -> Any:
    """The dataclass with what the TOML table says."""
    known = _fields(type(params))
    changes: dict[str, object] = {}
    for key, raw in table.items():
        where = f"{name}: {prefix}{key}"
        if key not in known:
            raise ConfigError(f"{where}: no such threshold{_meant(key, known, prefix, type(params))}")
        if is_dataclass(known[key]):
            if not isinstance(raw, Mapping):
                raise ConfigError(f"{where}: expected a table [{prefix}{key}], got {_shown(raw)}")
            changes[key] = _filled(getattr(params, key), raw, name, f"{prefix}{key}.")
        else:
            changes[key] = _value(raw, known[key], key, where)
    try:
        return replace(params, **changes)
    except ValueError as e:  # a class may check what belongs together
        raise ConfigError(f"{name}: [{prefix.removesuffix('.')}]: {e}") from e


def _fields(cls: Any) -> dict[str, Any]:
    """Name to type of what TOML can say: scalars, tuples of them, and dataclasses of these."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.init and _is_threshold(hints[f.name])}


def _is_threshold(kind: Any) -> bool:
    if is_dataclass(kind):
        return bool(_fields(kind)) and all(
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING for f in fields(kind)
        )
    return any(one in _SCALARS or _choices(one) for one in (kind, _item(kind), _optional(kind)))


def _item(kind: Any) -> Any:
    """The type of a tuple's items, where they all have one; else None."""
    if typing.get_origin(kind) in {tuple, frozenset} and len(set(typing.get_args(kind)) - {...}) == 1:
        return typing.get_args(kind)[0]
    return None


def _choices(kind: Any) -> tuple[str, ...]:
    """The words of a Literal of texts; else none."""
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return words if all(isinstance(word, str) for word in words) else ()


def _optional(kind: Any) -> Any:
    """X of `X | None`; else None."""
    if typing.get_origin(kind) not in {types.UnionType, typing.Union}:
        return None
    rest = [arg for arg in typing.get_args(kind) if arg is not type(None)]
    return rest[0] if len(rest) == 1 else None


def _value(raw: object, kind: Any, key: str, where: str) -> object:
    kind = _optional(kind) or kind
    item = _item(kind)
    if item is None:
        return _scalar(raw, kind, key, where)
    if not isinstance(raw, list):
        raise ConfigError(f"{where}: expected {_expected(kind, key)}, got {_shown(raw)}")
    container = typing.get_origin(kind)
    return container(_scalar(one, item, key, f"{where}[{i}]") for i, one in enumerate(raw))


def _scalar(raw: object, kind: Any, key: str, where: str) -> object:
    """The value, if it is of the type and within what can make sense."""
    if words := _choices(kind):
        if raw not in words:
            raise ConfigError(f"{where}: expected {_expected(kind, key)}, got {_shown(raw)}")
        return raw
    value: object = raw
    if kind is int and key.endswith("_ns") and isinstance(raw, str):
        value = _duration(raw)
    elif kind is float and type(raw) is int:
        value = float(raw)
    if type(value) is not kind or not _is_sensible(value, key):
        raise ConfigError(f"{where}: expected {_expected(kind, key)}, got {_shown(raw)}")
    return value


def _is_sensible(value: object, key: str) -> bool:
    """Whether a detector can work with it: no figure of ours means anything below zero, or beyond its unit's end."""
    match value:
        case bool() | str():
            return True
        case int() if key.endswith("_ns"):
            return 0 <= value <= _MOST_NS
        case int():
            return 1 <= value <= _MOST
        case float() if _is_share(key):
            return 0 < value < 1
        case float():
            return math.isfinite(value) and 0 <= value <= _MOST
    return False


def _is_share(key: str) -> bool:
    return any(word in key for word in ("chance", "score", "share"))


def _expected(kind: Any, key: str) -> str:
    kind = _optional(kind) or kind
    if (item := _item(kind)) is not None:
        return f"a list, each item {_expected(item, key)}"
    if words := _choices(kind):
        return f"one of {', '.join(words)}"
    if kind is int:
        return (
            'a duration like "15s" or "250ms", or whole nanoseconds' if key.endswith("_ns") else "a whole number from 1"
        )
    if kind is float:
        return "a number between 0 and 1" if _is_share(key) else "a number from 0"
    return "true or false" if kind is bool else "a text"


def _duration(text: str) -> int | None:
    match = _DURATION.fullmatch(text.strip())
    return None if match is None else round(float(match[1]) * _UNITS_NS[match[2]])


def _meant(key: str, known: Mapping[str, Any], prefix: str, cls: Any) -> str:
    if key in {f.name for f in fields(cls)}:
        return ": it is given by a flag of the command"
    close = difflib.get_close_matches(key, list(known), n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there {'is' if len(known) == 1 else 'are'} {', '.join(prefix + other for other in known)}"


def _shown(raw: object) -> str:
    return f"{'table' if isinstance(raw, Mapping) else type(raw).__name__} {raw!r}"[:200]


def _listed(params: Any, table: str) -> Iterator[Threshold]:
    known = _fields(type(params))
    docs = attribute_docs(type(params))
    nested = []
    for key, kind in known.items():
        if is_dataclass(kind):
            nested.append(key)
        else:
            yield Threshold(table, key, getattr(params, key), _expected(kind, key), docs.get(key, ""))
    for key in nested:
        yield from _listed(getattr(params, key), f"{table}.{key}")


def attribute_docs(cls: type) -> dict[str, str]:
    """Field name to what the docstring's `Attributes:` says of it; where there is none, its first sentence for every field."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    head, _, section = doc.partition("Attributes:\n")
    if not section:
        return dict.fromkeys((f.name for f in fields(cls)), " ".join(head.split()))
    return dict(_entries(section.splitlines()))


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of an `Attributes:` section: an entry begins at the section's own indentation."""
    names, words = "", list[str]()
    for line in lines:
        if line.strip() and not line.startswith(" "):
            break  # the section is over
        start = re.match(r" {4}(\w+(?:, \w+)*): ?(.*)", line)
        if start:
            yield from _each(names, words)
            names, words = start[1], [start[2].strip()]
        elif line.strip():
            words.append(line.strip())
    yield from _each(names, words)


def _each(names: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """An entry may be about several fields: `internal, external: …`."""
    return ((name, " ".join(words)) for name in names.split(", ") if name)

r"""Envoy's access log format strings: how an operator wrote the lines is how they are read.

    compile_format('[%START_TIME%] "%REQ(:METHOD)% %REQ(:PATH)%" %RESPONSE_CODE% %REQ(X-REQUEST-ID)%\n') -> read(text) -> fields
    compile_format('{"t": "%START_TIME(%s.%3f)%", "id": "%REQ(X-REQUEST-ID)%"}')     json_format, flat

Fields have the key names of Istio's JSON (see `envoy`), operators without one their own name in lower case. An operator's value
ends where the text behind it begins; two that stand side by side have no boundary, and are refused.
Source: Envoy, "Access logging: Format strings", "Command operators".
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

from collector.errors import ConfigError, DecodeError
from collector.witnesses.values import NS_PER_S, json_object

ReadFields = Callable[[str], dict[str, object]]

_OPERATOR: Final = re.compile(
    r"%(?P<name>[A-Z][A-Z0-9_]*)(?:\((?P<arguments>[^()]*(?:\([^()]*\)[^()]*)*)\))?(?::(?P<length>\d+))?%|%%"
)

_NAMED: Final = {
    "REQ:METHOD": "method", "REQX-ENVOY-ORIGINAL-PATH": "path", "REQ:PATH": "path", "REQ:AUTHORITY": "authority",
    "REQX-REQUEST-ID": "request_id", "REQUSER-AGENT": "user_agent", "REQX-FORWARDED-FOR": "x_forwarded_for",
    "REQTRACEPARENT": "traceparent", "REQX-FORWARDED-CLIENT-CERT": "x_forwarded_client_cert",
    "RESPX-ENVOY-UPSTREAM-SERVICE-TIME": "upstream_service_time", "PATH": "path", "UPSTREAM_CLUSTER_RAW": "upstream_cluster",
}  # fmt: skip
"""Operator and header to key, where that is not the operator's name in lower case."""


@dataclass(frozen=True, slots=True)
class _Operator:
    """One command operator: the key that its value has, and for START_TIME its format."""

    key: str
    time_format: str | None = None


def compile_format(text: str) -> ReadFields:
    """How a line of this format is read; raises ConfigError where that has more than one answer."""
    text = text.removesuffix("\\n").rstrip("\n")
    if not text.strip():
        raise ConfigError(
            "--log-format is empty: expected Envoy's format string, such as '[%START_TIME%] %RESPONSE_CODE%'"
        )
    return _json_reader(text) if text.lstrip().startswith("{") else _text_reader(text)


def _operator(match: re.Match[str]) -> _Operator:
    name, arguments = match["name"], match["arguments"] or ""
    if name == "START_TIME":
        if arguments:
            _time_pattern(arguments)  # what cannot be read is said now
        return _Operator("start_time", arguments or None)
    header = arguments.partition("?")[0].strip().upper()
    if key := _NAMED.get(name + header):
        return _Operator(key)
    if name in {"REQ", "RESP", "TRAILER"}:
        prefix = {"REQ": "", "RESP": "response.", "TRAILER": "trailer."}[name]
        return _Operator(prefix + header.lower())
    key = name.lower() + (f".{arguments.lower()}" if arguments and name != "RESPONSE_FLAGS" else "")
    return _Operator(key)


# --- text -----------------------------------------------------------------------------------------------------------------


def _text_reader(text: str) -> ReadFields:
    parts: list[str | _Operator] = []
    at = 0
    for match in _OPERATOR.finditer(text):
        parts.append(text[at : match.start()])
        parts.append("%" if match.group() == "%%" else _operator(match))
        at = match.end()
    parts.append(text[at:])
    parts = _merged(parts)
    operators = [part for part in parts if isinstance(part, _Operator)]
    if not any(o.key == "start_time" for o in operators):
        raise ConfigError("--log-format has no %START_TIME%: without a time a line is no evidence")
    pattern = re.compile(_pattern(parts))

    def read(line: str) -> dict[str, object]:
        found = pattern.fullmatch(line)
        if found is None:
            raise DecodeError("not a line of --log-format")
        fields: dict[str, object] = {}
        for operator, value in zip(operators, found.groups(), strict=True):
            fields.setdefault(operator.key, _value(operator, value))
        return fields

    return read


def _merged(parts: list[str | _Operator]) -> list[str | _Operator]:
    """Neighbouring literals as one, no empty ones."""
    merged: list[str | _Operator] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return merged


def _pattern(parts: list[str | _Operator]) -> str:
    pieces = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            pieces.append(re.escape(part))
            continue
        behind = parts[i + 1] if i + 1 < len(parts) else ""
        if isinstance(behind, _Operator):
            raise ConfigError(
                f"--log-format: nothing stands between {part.key} and {behind.key}: where one ends cannot be told"
            )
        before = parts[i - 1] if i else ""
        is_quoted = isinstance(before, str) and before.endswith('"') and behind.startswith('"')
        # Unquoted values end at the first character that follows them; in brackets or quotes they may hold blanks.
        ends = '"' if is_quoted or not behind else behind[0]
        pieces.append(f"([^{re.escape(ends)}]*)" if behind else "(.*)")
    return "".join(pieces)


# --- JSON -----------------------------------------------------------------------------------------------------------------


def _json_reader(text: str) -> ReadFields:
    try:
        document = json.loads(text)
    except ValueError as e:
        raise ConfigError(f"--log-format begins like a json_format, but is not JSON: {e}") from e
    operators: dict[str, _Operator] = {}
    for key, value in document.items():
        match = _OPERATOR.fullmatch(value) if isinstance(value, str) else None
        if match is not None and match["name"]:
            operators[key] = _operator(match)
    if not any(o.key == "start_time" for o in operators.values()):
        raise ConfigError("--log-format has no key whose value is %START_TIME%: without a time a line is no evidence")

    def read(line: str) -> dict[str, object]:
        fields: dict[str, object] = {}
        for key, value in json_object(line).items():
            operator = operators.get(key)
            fields[key if operator is None else operator.key] = value if operator is None else _value(operator, value)
        return fields

    return read


# --- times ----------------------------------------------------------------------------------------------------------------


def _value(operator: _Operator, value: object) -> object:
    """A time in a format of its own becomes one in RFC 3339; all else stays."""
    if operator.time_format is None or value in {"", "-"}:
        return value
    return _rfc3339(str(value), operator.time_format)


_DIRECTIVES: Final[Mapping[str, str]] = {
    "Y": r"(?P<Y>\d{4})", "m": r"(?P<m>\d\d)", "d": r"(?P<d>\d\d)", "e": r"\s?(?P<d>\d{1,2})", "H": r"(?P<H>\d\d)",
    "M": r"(?P<M>\d\d)", "S": r"(?P<S>\d\d)", "s": r"(?P<s>\d{1,10})", "z": r"(?P<z>[+-]\d\d:?\d\d|Z)",
    "b": r"(?P<b>[A-Za-z]{3})", "a": r"[A-Za-z]{3}", "Z": r"(?:UTC|GMT)", "%": "%",
    "T": r"(?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)", "F": r"(?P<Y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)",
    "n": r"\s", "t": r"\s",
}  # fmt: skip
_DIRECTIVE: Final = re.compile(r"%E(?P<fraction>\d|\*)S|%(?P<digits>\d?)(?P<letter>[A-Za-z%])")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _rfc3339(text: str, format_: str) -> str | None:
    found = re.fullmatch(_time_pattern(format_), text)
    if found is None:
        return None
    parts = {key: value for key, value in found.groupdict().items() if value is not None}
    try:
        moment, nanos = _moment(parts)
    except (ValueError, OverflowError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def _piece(match: re.Match[str]) -> str | None:
    if match["fraction"]:
        return r"(?P<S>\d\d)\.(?P<f>\d{1,9})"
    if match["letter"] == "f":
        return rf"(?P<f>\d{{{match['digits'] or '1,9'}}})"
    return _DIRECTIVES.get(match["letter"])


@lru_cache
def _time_pattern(format_: str) -> str:
    pieces: list[str] = []
    seen: set[str] = set()
    at = 0
    for match in _DIRECTIVE.finditer(format_):
        pieces.append(re.escape(format_[at : match.start()]))
        piece = _piece(match)
        if piece is None:
            raise ConfigError(f"--log-format: %START_TIME({format_})% has {match.group()}, which cannot be read back")
        for name in re.findall(r"\?P<(\w)>", piece):
            piece = piece.replace(f"?P<{name}>", "?:") if name in seen else piece
            seen.add(name)
        pieces.append(piece)
        at = match.end()
    return "".join([*pieces, re.escape(format_[at:])])


def _moment(parts: Mapping[str, str]) -> tuple[datetime, int]:
    nanos = int(parts.get("f", "0").ljust(9, "0"))
    if "s" in parts:
        return datetime.fromtimestamp(int(parts["s"]), UTC), nanos
    month = _MONTHS.index(parts["b"].lower()) + 1 if "b" in parts else int(parts["m"])
    hour, minute, second = (int(parts.get(key, "0")) for key in "HMS")
    moment = datetime(int(parts["Y"]), month, int(parts["d"]), hour, minute, second, tzinfo=_zone(parts.get("z", "Z")))
    return moment.astimezone(UTC), nanos % NS_PER_S


def _zone(text: str) -> timezone:
    if text == "Z":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))

"""RFC 9651 dictionaries: as much of structured fields as stamps and digests need, and strict about that much.

Pure: text in, values out. `parse_dictionary` raises `StructuredFieldError` on anything that the grammar does not allow,
because RFC 9651 section 4.2 wants a field that fails to parse to be ignored as a whole, never half understood.
Members that nobody asks for are parsed all the same (an unknown key must be skipped, and skipping it needs the grammar).
"""

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


class StructuredFieldError(ValueError):
    """The text is not an RFC 9651 dictionary."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value of a type that no stamp or digest uses: token, decimal, date, boolean or inner list, as it was written."""

    text: str


Value = int | str | bytes | Opaque
"""Integers, Strings and Display Strings, Byte Sequences; every other type is `Opaque`."""

_KEY: Final = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_OWS: Final = re.compile(r"[ \t]*")
_SPACES: Final = re.compile(r" *")
_STRING: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPE: Final = re.compile(r"\\(.)")
_DISPLAY_STRING: Final = re.compile(r'%"((?:[\x20\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*)"')
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]*)(={0,2}):")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9.])")
_INTEGER: Final = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_OPAQUE: Final = re.compile(
    r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*"  # token
    r"|@-?[0-9]{1,15}(?![0-9.])"  # date
    r"|\?[01]"  # boolean
)


def parse_dictionary(text: str, *, max_length: int) -> dict[str, Value]:
    """The members by key, parameters dropped; of duplicate keys the last wins (RFC 9651 section 4.2.2).

    Raises:
        StructuredFieldError: Longer than `max_length` characters, or not a dictionary.
    """
    if len(text) > max_length:
        message = f"{len(text)} characters, at most {max_length} are read"
        raise StructuredFieldError(message)
    text = text.strip(" ")
    members: dict[str, Value] = {}
    at = 0
    while at < len(text):
        key, at = _take(_KEY, text, at, "a key")
        if text.startswith("=", at):
            value, at = _member_value(text, at + 1)
        else:
            value = Opaque("?1")  # "a member whose value is Boolean true omits it"
        at = _skip_parameters(text, at)
        members[key] = value
        at = _skip(_OWS, text, at)
        if at == len(text):
            break
        at = _skip(_OWS, text, _expect(",", text, at))
        if at == len(text):
            raise StructuredFieldError("a comma at the end")
    return members


def render_bytes(data: bytes) -> str:
    """A Byte Sequence: `:<base64>:`."""
    return f":{binascii.b2a_base64(data, newline=False).decode()}:"


def render_string(text: str) -> str:
    """A String where ASCII is enough, else a Display String (RFC 9651 sections 3.3.3 and 3.3.8).

    Raises:
        StructuredFieldError: Lone surrogates, which have no UTF-8 form.
    """
    if text.isascii() and text.isprintable():
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    try:
        raw = text.encode()
    except UnicodeEncodeError as e:
        raise StructuredFieldError("a lone surrogate cannot be written") from e
    return '%"' + "".join(chr(b) if 0x20 <= b <= 0x7E and b not in b'%"' else f"%{b:02x}" for b in raw) + '"'


def _member_value(text: str, at: int) -> tuple[Value, int]:
    if not text.startswith("(", at):
        return _bare_item(text, at)
    start = at
    at = _skip(_SPACES, text, at + 1)
    while not text.startswith(")", at):
        _, at = _bare_item(text, at)
        at = _skip_parameters(text, at)
        after = _skip(_SPACES, text, at)
        if after == at and not text.startswith(")", at):
            message = f"expected a space or ) at character {at} of an inner list"
            raise StructuredFieldError(message)
        at = after
    return Opaque(text[start : at + 1]), at + 1


def _skip_parameters(text: str, at: int) -> int:
    while text.startswith(";", at):
        _, at = _take(_KEY, text, _skip(_SPACES, text, at + 1), "a parameter's key")
        if text.startswith("=", at):
            _, at = _bare_item(text, at + 1)
    return at


def _bare_item(text: str, at: int) -> tuple[Value, int]:
    for pattern, convert in _BARE_ITEMS.get(text[at : at + 1], _TOKENS):
        if match := pattern.match(text, at):
            return convert(match), match.end()
    message = f"expected a value at character {at}"
    raise StructuredFieldError(message)


def _display_string(match: re.Match[str]) -> str:
    raw = re.sub(rb"%([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), match[1].encode())
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise StructuredFieldError("a display string that is not UTF-8") from e


def _byte_sequence(match: re.Match[str]) -> bytes:
    # "parsers ... SHOULD NOT fail ... on missing padding" (section 4.2.7): so it is counted here, not demanded there.
    symbols = match[1]
    try:
        return binascii.a2b_base64(symbols + "=" * (-len(symbols) % 4), strict_mode=True)
    except binascii.Error as e:
        raise StructuredFieldError("a byte sequence that is not base64") from e


_Reader = tuple[re.Pattern[str], Callable[[re.Match[str]], Value]]

_NUMBERS: Final[tuple[_Reader, ...]] = (
    (_INTEGER, lambda match: int(match[0])),
    (_DECIMAL, lambda match: Opaque(match[0])),
)
_TOKENS: Final[tuple[_Reader, ...]] = ((_OPAQUE, lambda match: Opaque(match[0])),)
_BARE_ITEMS: Final[dict[str, tuple[_Reader, ...]]] = dict.fromkeys("-0123456789", _NUMBERS) | {
    '"': ((_STRING, lambda match: _ESCAPE.sub(r"\1", match[1])),),
    ":": ((_BYTES, _byte_sequence),),
    "%": ((_DISPLAY_STRING, _display_string),),
}
"""How each bare item is read, by its first character (RFC 9651 section 4.2.3.1)."""


def _take(pattern: re.Pattern[str], text: str, at: int, what: str) -> tuple[str, int]:
    match = pattern.match(text, at)
    if match is None:
        message = f"expected {what} at character {at}"
        raise StructuredFieldError(message)
    return match[0], match.end()


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _expect(symbol: str, text: str, at: int) -> int:
    if not text.startswith(symbol, at):
        message = f"expected {symbol!r} at character {at}"
        raise StructuredFieldError(message)
    return at + len(symbol)

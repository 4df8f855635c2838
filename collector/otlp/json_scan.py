"""A JSON document read from its outside in: the values inside one at a time, never the whole document as objects.

Parsed at once, a document costs ten to thirty times its size in objects. Here at most `MAX_ELEMENT_BYTES` of text and
`MAX_VALUES` values exist together, whatever the document's size; the standard library's C scanner reads each of them.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn

from collector.errors import DecodeError

WINDOW_BYTES: Final = 256 * 1024
"""Text is decoded in pieces of this size: far more than a span, far less than a request."""

MAX_ELEMENT_BYTES: Final = 16 * 1024 * 1024
"""The longest value that is read as a whole: one span, one log record, one resource."""

MAX_VALUES: Final = 250_000
"""Brackets and commas in a value longer than `COUNTED_FROM`: as many objects take about 60 MB."""

COUNTED_FROM: Final = 1024 * 1024

MAX_SHOWN: Final = 40

_NOT_SPACE: Final = re.compile(r"[^ \t\r\n]")
_NUMBER_TAIL: Final = 4
"""A number may go on after `1`, `1.`, `1e` or `1e+`: so close to a window's end it is read again with the next one."""


class JsonFormError(DecodeError):
    """A document that is not the JSON form of the message that it should be.

    Attributes:
        reason: What is wrong.
        path: Where, as in `resourceSpans[0].scopeSpans[0].spans[3].kind`; empty when it is the document as a whole.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def inside(self, step: str) -> "JsonFormError":
        """The same error, seen from one level further out: `step` is a key, or a key with an index."""
        separator = "" if not self.path or self.path.startswith("[") else "."
        return JsonFormError(self.reason, f"{step}{separator}{self.path}")

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


def shown(value: object) -> str:
    """A JSON value in an error message: what it is, and its beginning when it is short enough to help."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "an object"
        case list():
            return "an array"
        case str():
            return f"the string {value[:MAX_SHOWN]!a}{'…' if len(value) > MAX_SHOWN else ''}"
        case _:
            return f"the number {value}"[:MAX_SHOWN]


def shown_key(key: str) -> str:
    """A key that nobody declared, as a step of a path: it may say anything, at any length."""
    return key if key.isascii() and key.isidentifier() and len(key) <= MAX_SHOWN else ascii(key[:MAX_SHOWN])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is not JSON: write "{name}"')


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


class Scanner:
    """A position in a document. Every method raises JsonFormError, and nothing else, for what the document should not say."""

    __slots__ = ("_at", "_body", "_decoder", "_fed", "_passed", "_text")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._fed = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._passed = 0

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            if found := _NOT_SPACE.search(self._text, self._at):
                self._at = found.start()
                return found.group()
            self._at = len(self._text)
            if not self._grow():
                return ""

    def take(self, character: str) -> bool:
        """Pass `character` if it is next."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def value(self) -> object:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise JsonFormError("nested too deeply") from None
            except ValueError as error:
                # Perhaps only the rest is missing.
                if not self._grow():
                    raise self._broken(error) from error
            else:
                cut = isinstance(value, int | float) and len(self._text) - end < _NUMBER_TAIL
                if not (cut and self._grow()):
                    self._at = end
                    return value

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; whoever iterates takes the value before the next key."""
        if not self.take("{"):
            raise JsonFormError(f"expected an object, got {self._seen()}")
        if self.take("}"):
            return
        while True:
            if self.peek() != '"':
                raise self._syntax("expected a key in double quotes")
            key = self.value()
            if not self.take(":"):
                raise self._syntax("expected ':' after a key")
            yield str(key)
            if self.take("}"):
                return
            if not self.take(","):
                raise self._syntax("expected ',' or '}' after a value")

    def items(self) -> Iterator[int]:
        """The indices of the array that begins here; whoever iterates takes each value."""
        if not self.take("["):
            raise JsonFormError(f"expected an array, got {self._seen()}")
        if self.take("]"):
            return
        index = 0
        while True:
            yield index
            index += 1
            if self.take("]"):
                return
            if not self.take(","):
                raise self._syntax("expected ',' or ']' after a value")

    def end(self) -> None:
        """There must be nothing more."""
        if self.peek():
            raise self._syntax("more text after the document's end")

    def _seen(self) -> str:
        return shown(self.value())

    def _grow(self) -> bool:
        """Drop what was read and decode as much again as is unread, at least a window; false at the document's end."""
        if self._fed >= len(self._body):
            return False
        unread = len(self._text) - self._at
        if unread >= MAX_ELEMENT_BYTES:
            raise JsonFormError(f"one value is longer than {MAX_ELEMENT_BYTES} characters")
        size = max(WINDOW_BYTES, min(unread, MAX_ELEMENT_BYTES - unread))
        piece = self._body[self._fed : self._fed + size]
        final = self._fed + size >= len(self._body)
        try:
            decoded = self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            raise JsonFormError(f"not UTF-8: {error.reason}, near byte {self._fed + error.start}") from error
        self._fed += size
        self._passed += self._at
        self._text = self._text[self._at :] + decoded
        self._at = 0
        if unread > COUNTED_FROM and sum(map(self._text.count, ",[{")) > MAX_VALUES:
            raise JsonFormError(f"one value holds more than {MAX_VALUES} values")
        return True

    def _broken(self, error: ValueError) -> JsonFormError:
        if isinstance(error, json.JSONDecodeError):
            what, position = error.msg, self._passed + error.pos
            return JsonFormError(f"not JSON: {what[:1].lower()}{what[1:]}, at character {position}")
        return JsonFormError(f"not JSON: {str(error).partition(';')[0]}")

    def _syntax(self, expected: str) -> JsonFormError:
        got = self.peek()
        return JsonFormError(f"not JSON: {expected}, got {got!a} at character {self._passed + self._at}")

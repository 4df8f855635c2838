"""JSON documents of any size, taken apart element by element: a search's answer may be one list of ten gigabytes.

Elements are what the lists at the top hold: of `[a, b]`, of `[[a], [b]]`, of `{"data": [a, b]}` for the keys that the
caller names; a document without such a list is one element itself. Documents may follow each other.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from collector.exchange.records import Bad
from collector.exchange.streams import Stream

MAX_ELEMENT_CHARACTERS: Final = 256 * 1024 * 1024
"""Of one element: a trace, a span, or a resource with its spans."""

_STEP: Final = 256 * 1024
_NEAR_THE_END: Final = 16
"""Where the text ends early, `json` says so at its last token (-Infinity, \\u0000) or at an open string's beginning."""

_LINE_WITH_BRACKET: Final = re.compile(r"\n(?=[{\[])")
_BLANK: Final = re.compile(r"[\s\x1e\ufeff]*")
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Element:
    """A parsed element, its text, and the line that it begins on, from 1."""

    value: object
    text: str
    line: int


class _Broken(Exception):  # noqa: N818 never leaves this module
    """The text is no JSON from here on."""


def elements(stream: Stream, keys: frozenset[str]) -> Iterator[Element | Bad]:
    """The elements of the stream's documents, in order.

    After an error reading goes on at the next line that begins with a bracket, where there is one: in lists with an
    element a line, and between documents.
    """
    text = _Text(stream)
    while text.skip_blank():
        try:
            yield from _document(text, keys)
        except _Broken as error:
            yield Bad(f"{error}; reading went on at the next line that begins with a bracket", text.line, "document")
            text.skip_to_next_line()


def _document(text: "_Text", keys: frozenset[str]) -> Iterator[Element]:
    line = text.line
    match text.peek():
        case "[":
            yield from _list(text, depth=1)
        case "{":
            yield from _object(text, keys, line)
        case "," | "]" | "}" if text.resumed:  # what is left of a broken document's brackets
            text.take()
        case _:
            raise _Broken("neither an object nor a list")


def _object(text: "_Text", keys: frozenset[str], line: int) -> Iterator[Element]:
    """The elements of the object's lists, or the object."""
    members: dict[str, object] = {}
    has_list = False
    text.take()
    while text.next_of("}", ","):
        key = text.value()
        text.expect(":")
        if not isinstance(key, str):
            raise _Broken("a key that is no string")
        text.skip_blank()
        if key in keys and text.peek() == "[":
            has_list = True
            yield from _list(text, depth=1)
        else:
            members[key] = text.value()
    if not has_list:
        yield Element(members, json.dumps(members), line)


def _list(text: "_Text", depth: int) -> Iterator[Element]:
    text.take()
    while text.next_of("]", ","):
        if text.peek() == "[" and depth == 1:
            yield from _list(text, depth + 1)
        else:
            line = text.line
            value = text.value()
            yield Element(value, text.last, line)


class _Text:
    """The stream as text, from the current position on."""

    def __init__(self, stream: Stream) -> None:
        self.resumed = False
        self._before = 1
        self._counted = 0
        self._value = (0, 0)
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._position = 0
        self._ended = False

    @property
    def line(self) -> int:
        """The line of the position, from 1."""
        self._count_lines()
        return self._before

    @property
    def last(self) -> str:
        """The text of the value that was read last; only until the next one is looked for."""
        return self._text[self._value[0] : self._value[1]]

    def peek(self) -> str:
        """The next character; nothing at the end."""
        return self._text[self._position : self._position + 1]

    def take(self) -> None:
        """Pass the next character."""
        self._position += 1

    def skip_blank(self) -> bool:
        """Pass white space; False at the end."""
        while True:
            match = _BLANK.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return True
            if not self._more(_STEP):
                return False

    def expect(self, character: str) -> None:
        """Pass white space and this character."""
        if not self.skip_blank():
            raise _Broken("it ends early")
        if self.peek() != character:
            raise _Broken(f"expected {character}")
        self.take()

    def next_of(self, closing: str, separator: str) -> bool:
        """Whether another member follows: passes the separator before it, or the bracket after the last."""
        if not self.skip_blank():
            raise _Broken("it ends early")
        character = self.peek()
        if character == closing:
            self.take()
            return False
        if character == separator:
            self.take()
            if not self.skip_blank():
                raise _Broken("it ends early")
        return True

    def value(self) -> object:
        """The JSON value at the position, however much must be read for it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                self._read_on(error)
            except RecursionError as error:
                raise _Broken("nested too deeply") from error
            except ValueError as error:  # an integer of more digits than Python converts
                raise _Broken("a number with too many digits") from error
            else:
                if end < len(self._text) or self._ended or isinstance(value, dict | list | str):
                    self._value = (self._position, end)
                    self._position = end
                    return value
                self._more(_STEP)  # a number may go on

    def _read_on(self, error: json.JSONDecodeError) -> None:
        """Read more if that may help; raises _Broken if it cannot."""
        is_open = (
            error.msg.startswith(("Unterminated string", "Invalid \\")) or len(self._text) - error.pos < _NEAR_THE_END
        )
        remaining = len(self._text) - self._position
        if not is_open:
            raise _Broken(f"not JSON: {error.msg}") from None
        if remaining > MAX_ELEMENT_CHARACTERS:
            raise _Broken(f"one element has more than {MAX_ELEMENT_CHARACTERS} characters")
        if not self._more(max(_STEP, remaining)):
            raise _Broken("it ends early" if is_open else f"not JSON: {error.msg}") from None

    def skip_to_next_line(self) -> None:
        """Pass everything up to a line that begins with a bracket, or to the end."""
        self.resumed = True
        while True:
            found = _LINE_WITH_BRACKET.search(self._text, self._position)
            if found:
                self._position = found.end()
                return
            self._position = max(self._position, len(self._text) - 1)
            if not self._more(_STEP):
                self._position = len(self._text)
                return

    def _more(self, characters: int) -> bool:
        """Read on by about this much; False at the end."""
        pieces = [self._text[self._position :]]
        self._count_lines()
        read = 0
        while not self._ended and read < characters:
            data = self._stream.read_some()
            self._ended = not data
            pieces.append(self._decode(data, self._ended))
            read += len(pieces[-1])
        self._text = "".join(pieces)
        self._position = self._counted = 0
        return read > 0

    def _count_lines(self) -> None:
        self._before += self._text.count("\n", self._counted, self._position)
        self._counted = self._position

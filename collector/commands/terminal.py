"""What may reach a terminal: recorded values, file names and other hosts' errors are text, never commands to it."""

import re
import sys
from typing import Final

# C0, DEL, C1, line separators and the bidirectional controls: what a log line can use to rewrite a terminal.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escape(text: str) -> str:
    r"""The text with control characters made visible (`\x1b`), so that no recorded value can drive the terminal."""
    return _CONTROL.sub(lambda m: _visible(m.group()), text)


def escape_lines(text: str) -> str:
    """Each line escaped, the line breaks kept: DuckDB points at a place in the SQL on lines of its own."""
    return "\n".join(escape(line) for line in text.split("\n"))


def complain(command: str, text: str) -> None:
    """Say on stderr what `provenance COMMAND` has to say beside its data."""
    print(f"provenance {command}: {escape_lines(text)}", file=sys.stderr, flush=True)


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

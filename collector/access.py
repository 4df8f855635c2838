"""How a source is opened: what is shown to a collector and by what it is known, and how much memory a file may take.

Flags beat the environment: PROVENANCE_READ_TOKEN_FILE, PROVENANCE_CA_FILE, PROVENANCE_CLIENT_CERT_FILE, PROVENANCE_CLIENT_KEY_FILE,
PROVENANCE_MEMORY.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.errors import ConfigError
from collector.units import parse_size

MEMORY_ENV: Final = "PROVENANCE_MEMORY"

LEAST_MEMORY_BYTES: Final = 64 * 1024**2
"""Below it DuckDB has no room for the columns that it reads at one time."""

_MEMORY_EXPECTED: Final = "a size of 64MiB or more, such as 2GiB"

_FILES: Final = {
    "token_file": "PROVENANCE_READ_TOKEN_FILE",
    "ca_file": "PROVENANCE_CA_FILE",
    "client_cert_file": "PROVENANCE_CLIENT_CERT_FILE",
    "client_key_file": "PROVENANCE_CLIENT_KEY_FILE",
}


@dataclass(frozen=True, slots=True)
class Access:
    """What is shown to a collector, and by what it is known; files are not read before they are needed. And what a file may take.

    Attributes:
        token_file: Its first token is sent with each request; read each time, so that it may rotate.
        ca_file: PEM authorities that may vouch for the collector; None: those of this machine.
        client_cert_file: PEM certificate to show where the collector asks for one (mTLS), with `client_key_file`.
        memory_bytes: What DuckDB may hold of a file's rows and of what it makes of them; None: see `store.database`. A collector has its own.
    """

    token_file: Path | None = None
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    memory_bytes: int | None = None

    @classmethod
    def of(cls, options: argparse.Namespace, environ: Mapping[str, str] | None = None) -> "Access":
        """From the flags of `add_access_arguments`, and where they are not given from the environment; raises ConfigError."""
        environ = os.environ if environ is None else environ

        def chosen(name: str) -> Path | None:
            text = getattr(options, name, None) or environ.get(_FILES[name])
            return Path(text).expanduser() if text else None

        return cls(**{name: chosen(name) for name in _FILES}, memory_bytes=_memory(options, environ))


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `Access.of` reads."""
    for name, text in (
        ("token_file", "the read token of a collector that asks for one"),
        ("ca_file", "PEM: the authority of an https:// collector (default: this machine's)"),
        ("client_cert_file", "PEM: the certificate to show a collector that asks for one"),
        ("client_key_file", "PEM: its private key"),
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, metavar="FILE", help=f"{text} (environment: {_FILES[name]})")
    add_memory_argument(parser)


def add_memory_argument(parser: argparse.ArgumentParser) -> None:
    """The one of them that is about a file."""
    parser.add_argument(
        "--memory",
        dest="memory_bytes",
        metavar="SIZE",
        type=_memory_size,
        help="what the database may hold in memory of a file that is asked; the rest is spilled into SOURCE.tmp beside it "
        "(default: half of what this machine or container has, 4GiB at most; a collector has a setting of its own; "
        f"environment: {MEMORY_ENV})",
    )


def _memory(options: argparse.Namespace, environ: Mapping[str, str]) -> int | None:
    given: int | None = getattr(options, "memory_bytes", None)
    text = environ.get(MEMORY_ENV)
    if given is not None or not text:
        return given
    try:
        return _size(text)
    except ValueError as e:
        raise ConfigError(f"{MEMORY_ENV}={text}: expected {_MEMORY_EXPECTED}") from e


def _memory_size(text: str) -> int:
    try:
        return _size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {_MEMORY_EXPECTED}") from None


def _size(text: str) -> int:
    """Bytes; raises ValueError, also where they are too few."""
    size_bytes = parse_size(text)
    if not LEAST_MEMORY_BYTES <= size_bytes <= 2**60:
        raise ValueError(text)
    return size_bytes

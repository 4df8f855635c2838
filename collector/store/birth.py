"""A new evidence file appears whole or not at all.

DuckDB writes a file's three headers one after the other: who is killed between them, or loses power, leaves what nobody can
open, and a collector that cannot start again by itself. So a new file is made under another name and linked to its own.
"""

import os
from collections.abc import Callable
from pathlib import Path

from collector.errors import StoreError


def make_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Have the file made beside its place, unless it is there; then give it its name. Raises StoreError, and what `make` raises."""
    if path.exists():
        return
    unfinished = path.with_name(f"{path.name}.new")
    try:
        _remove(unfinished)
        make(unfinished)
        _link(unfinished, path)
        _remove(unfinished)
        _sync(path.parent)
    except OSError as e:
        raise StoreError(f"{path} cannot be created: {e.strerror or e}") from e


def _link(unfinished: Path, path: Path) -> None:
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return  # somebody else was faster: theirs is the file
    except OSError:  # a filesystem without hard links
        if not path.exists():
            unfinished.rename(path)


def _remove(unfinished: Path) -> None:
    for path in (unfinished, unfinished.with_name(f"{unfinished.name}.wal")):
        if path.exists():  # a directory that takes no change says so to DuckDB, whose errors are explained
            path.unlink()


def _sync(directory: Path) -> None:
    """A name is durable when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

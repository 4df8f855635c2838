"""Compiled statements kept between processes: SQL by what it was compiled from, in files of the user's cache directory.

Ibis takes seconds to compile what an engine answers in a tenth of that, and every command is a process of its own. A statement depends on
nothing but our source, Ibis, sqlglot and its shape, so it is compiled once a machine; like Python's own `__pycache__`, a directory that cannot
be read or written costs the time it would have saved, and nothing else.

    of_user().recall("forensics.edges:_figures(…)", compile)

The directory is `$PROVENANCE_CACHE_DIR` (empty: nothing is kept), else `mesh-provenance` in `$XDG_CACHE_HOME` or in `~/.cache`.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

GENERATIONS: Final = 8
"""Directories that are kept: other releases side by side, the last edits of a developer."""

_SOURCES: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("collector", "provenance")
_COMPILERS: Final = ("ibis-framework", "sqlglot")
_DIGEST_BYTES: Final = 16

_IMPORTED: Final = time.time()

_log = logging.getLogger(__name__)


def default_folder(environ: Mapping[str, str] | None = None) -> Path | None:
    """The user's cache directory for statements; None where it is turned off, or the user has no home."""
    environ = os.environ if environ is None else environ
    given = environ.get("PROVENANCE_CACHE_DIR")
    if given is not None:
        return Path(given).expanduser() / "statements" if given else None
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "mesh-provenance" / "statements"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "mesh-provenance" / "statements"
    return None


@cache
def of_user() -> "StatementFiles":
    """Those of whoever runs this process."""
    generation = _generation()
    return StatementFiles(default_folder() if generation else None, generation)


class StatementFiles:
    """The statements of this generation of the source, each in a file of `folder`; None keeps none."""

    def __init__(self, folder: Path | None, generation: str) -> None:
        self._folder = None if folder is None else folder / generation

    def recall(self, key: str, compiled: Callable[[], str]) -> str:
        """The statement of this key: the one that was kept, else what `compiled` gives, which is kept."""
        if self._folder is None:
            return compiled()
        file = self._folder / f"{_digest(key.encode())}.sql"
        kept = _read(file)
        if kept is None:
            kept = compiled()
            self._keep(file, kept)
        return kept

    def _keep(self, file: Path, sql: str) -> None:
        content = sql.encode()
        try:
            if not file.parent.exists():
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _forget_all_but(GENERATIONS, file.parent.parent)
            # Whoever reads meanwhile sees no file or a whole one.
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
                draft.write(f"{_digest(content)}\n".encode() + content)
            Path(draft.name).replace(file)
        except OSError as error:
            _log.debug("compiled statements are not kept: %s", error)
            self._folder = None


def _read(file: Path) -> str | None:
    """What the file has, None if it is not there or not whole: a digest stands before the statement."""
    try:
        digest, _, content = file.read_bytes().partition(b"\n")
    except OSError:
        return None  # not kept yet, or not ours to read: it is compiled
    return content.decode() if digest == _digest(content).encode() else None


def _forget_all_but(generations: int, folder: Path) -> None:
    """Remove all but the newest generations; one that another process removed first is as gone."""
    ages: dict[Path, float] = {}
    for old in folder.iterdir():
        with suppress(FileNotFoundError):
            ages[old] = old.stat().st_mtime
    for old in sorted(ages, key=ages.__getitem__)[:-generations]:
        shutil.rmtree(old, ignore_errors=True)


def _generation() -> str:
    """Everything that a statement depends on but its shape: our source and the versions of what compiles it.

    Empty where a file was changed since this process began: what it would compile is no longer what the files say.
    """
    files = sorted(file for package in _PACKAGES for file in (_SOURCES / package).rglob("*.py"))
    if max(file.stat().st_mtime for file in files) > _IMPORTED:
        return ""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for file in files:
        digest.update(f"{file.relative_to(_SOURCES)}\0".encode() + file.read_bytes())
    digest.update("\0".join(version(name) for name in _COMPILERS).encode())
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()

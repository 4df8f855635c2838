"""Where an export goes: stdout, or a file or directory that is there whole or not at all."""

import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

from collector.errors import ConfigError
from collector.exchange.parquet import SUFFIX

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDOUT: Final = "-"
_GZIP: Final = 16 + zlib.MAX_WBITS


class Output(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Append."""
        ...


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Compressing:
    """Bytes through a compressor into a file."""

    def __init__(self, file: IO[bytes], compressor: _Compressor) -> None:
        self._file = file
        self._compressor = compressor

    def write(self, data: bytes, /) -> None:
        self._file.write(self._compressor.compress(data))

    def finish(self) -> None:
        self._file.write(self._compressor.flush())


@contextmanager
def open_file(out: str, *, force: bool) -> Iterator[Output]:
    """A file that takes its name when all is written, or stdout for `-`; `.gz` and `.zst` are compressed.

    Raises ConfigError when it exists and must not be replaced, or cannot be written.
    """
    if out == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(out).expanduser()
    check_free(path, force=force)
    if path.is_dir():
        raise ConfigError(f"{path} is a directory: name a file")
    unfinished = _unfinished(path)
    try:
        with unfinished.open("xb") as file:
            compressor = _compressor(path.suffix)
            if compressor is None:
                yield file
            else:
                compressing = _Compressing(file, compressor)
                yield compressing
                compressing.finish()
            file.flush()
            os.fsync(file.fileno())
        check_free(path, force=force)  # it took a while
        unfinished.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def open_directory(out: str, *, force: bool) -> Iterator[Path]:
    """A directory that takes its name when all is written; with `force` it replaces an older export, and nothing else."""
    path = Path(out).expanduser()
    check_free(path, force=force)
    if path.exists() and not _is_export(path):
        raise ConfigError(f"{path} is not an export (a directory with *{SUFFIX} alone): --force does not replace it")
    unfinished = _unfinished(path)
    try:
        unfinished.mkdir()
        yield unfinished
        check_free(path, force=force)
        if path.exists():
            older = unfinished.with_name(unfinished.name + ".older")
            path.rename(older)
            unfinished.rename(path)
            shutil.rmtree(older)
        else:
            unfinished.rename(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_free(path: Path, *, force: bool) -> None:
    """Raise ConfigError when something has this name that must not be replaced."""
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: --force replaces it")


def _is_export(path: Path) -> bool:
    return path.is_dir() and all(entry.suffix == SUFFIX and entry.is_file() for entry in path.iterdir())


def _unfinished(path: Path) -> Path:
    """A name beside it, so that renaming stays within one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _unwritable(path: Path, error: OSError) -> ConfigError | OSError:
    # A reader of ours that has seen enough is no failure of this file's.
    return (
        error
        if isinstance(error, BrokenPipeError)
        else ConfigError(f"{path} cannot be written: {error.strerror or error}")
    )


def _compressor(suffix: str) -> _Compressor | None:
    match suffix:
        case ".gz":
            return zlib.compressobj(wbits=_GZIP)
        case ".zst" | ".zstd":
            return zstd.ZstdCompressor()
        case _:
            return None

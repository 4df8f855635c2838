"""The watch's memory on disk: state, what waits to be delivered, and people's marks. Written whole, renamed into place.

    FILE          state and outbox; written by the one watch that holds FILE.lock
    FILE.marks    acknowledgements and silences; written by `--ack`, `--silence`, `--clear`, read by the watch in every round
    FILE.lock     held for as long as a watch runs; empty but for its process id

After a kill -9 each of them is as it was before or after a write, never in between. What cannot be read is an error: a watch that
forgot in silence would tell everything anew.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from collector.errors import ConfigError
from collector.watch.model import Event, Marks, Need, Record, State

VERSION: Final = 1

T = TypeVar("T")

Outbox = Mapping[str, tuple[Event, ...]]
"""What waits for its delivery, by sink, the oldest first."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What FILE holds: whose findings, their state, and what is not delivered yet."""

    source: str
    state: State
    outbox: Outbox


def dump(memory: Memory) -> str:
    """The memory as JSON."""
    state = memory.state
    document = {
        "version": VERSION,
        "source": memory.source,
        "looked_until_unix_nano": state.looked_until_unix_nano,
        "blind_since_unix_nano": state.blind_since_unix_nano,
        "records": [_plain(asdict(record)) for record in state.records.values()],
        "outbox": {sink: [_plain(asdict(event)) for event in events] for sink, events in memory.outbox.items()},
    }
    return json.dumps(document, separators=(",", ":")) + "\n"


def load(text: str) -> Memory:
    """The memory of a text that `dump` made; raises ValueError, KeyError or TypeError on any other."""
    document = json.loads(text)
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}, expected {VERSION}")
    records = [_record(entry) for entry in document["records"]]
    return Memory(
        source=str(document["source"]),
        state=State(
            {record.finding_id: record for record in records},
            int(document["looked_until_unix_nano"]),
            int(document["blind_since_unix_nano"]),
        ),
        outbox={sink: tuple(_only(Event, entry) for entry in events) for sink, events in document["outbox"].items()},
    )


def read_memory(path: Path, source: str) -> Memory:
    """What FILE holds, or nothing if there is none; raises ConfigError, also if it belongs to another source."""
    try:
        memory = load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Memory(source, State(), {})
    except OSError as e:
        raise ConfigError(f"the state {path} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"{path} is no state of `provenance watch` ({type(e).__name__}: {e}); move it away to begin anew"
        ) from e
    if memory.source != source:
        raise ConfigError(
            f"the state {path} is of a watch of {memory.source}, not of {source}; give each source a file of its own"
        )
    return memory


def write_text(path: Path, text: str) -> None:
    """Replace FILE, and let it survive the machine: beside it, synced, renamed. Raises ConfigError."""
    _replace(path, text)


def marks_path(path: Path) -> Path:
    """FILE.marks."""
    return path.with_name(path.name + ".marks")


def read_marks(path: Path) -> Marks:
    """The marks beside FILE; raises ConfigError."""
    beside = marks_path(path)
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
        return Marks(_times(document["acknowledged"]), _times(document["silenced"]))
    except FileNotFoundError:
        return Marks()
    except OSError as e:
        raise ConfigError(f"the marks {beside} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"{beside} holds no marks of `provenance watch` ({type(e).__name__}: {e}); move it away to begin anew"
        ) from e


@contextmanager
def changed_marks(path: Path) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """(acknowledged, silenced), to be changed and then written; one process at a time. Raises ConfigError."""
    with _locked(path.with_name(path.name + ".marks.lock"), wait=True):
        marks = read_marks(path)
        acknowledged, silenced = dict(marks.acknowledged), dict(marks.silenced)
        yield acknowledged, silenced
        _replace(marks_path(path), json.dumps({"acknowledged": acknowledged, "silenced": silenced}) + "\n")


@contextmanager
def only_watch(path: Path) -> Iterator[None]:
    """For as long as this process is the one watch that writes FILE; raises ConfigError where another one is."""
    with _locked(path.with_name(path.name + ".lock"), wait=False):
        yield


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise ConfigError(
            f"{path} cannot be written: {e.strerror}; --state must name a file in a folder of ours"
        ) from e
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as e:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            raise ConfigError(
                f"another watch (process {holder or 'unknown'}) keeps its state in {path.with_suffix('')}: stop it, or give "
                "this one a --state of its own"
            ) from e
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Write beside it, sync, rename: whoever reads sees the old text or the new one. The findings are nobody else's to read."""
    beside = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        with suppress(OSError):
            beside.unlink()
        raise ConfigError(f"the state {path} cannot be written: {e.strerror}") from e


def _record(entry: Mapping[str, Any]) -> Record:
    needs = tuple(_only(Need, need) for need in entry["needs"])
    return _only(Record, {**entry, "needs": needs, "reasons": tuple(entry["reasons"])})


def _only(kind: Callable[..., T], entry: Mapping[str, Any]) -> T:
    """The dataclass with these fields and no others; raises TypeError."""
    return kind(**entry)


def _times(entries: Mapping[str, object]) -> Mapping[str, int]:
    return MappingProxyType({str(key): _integer(value) for key, value in entries.items()})


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a time in ns, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    """Mappings and sequences as JSON has them."""
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case str():
            return value
        case Sequence():
            return [_plain(item) for item in value]
        case _:
            return value

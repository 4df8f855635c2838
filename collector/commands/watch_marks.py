"""What people say about a watch's findings: `--list`, `--ack`, `--silence`, `--clear`."""

import argparse
import sys
from pathlib import Path
from typing import Final

import polars as pl

from collector.commands.output import write_frame
from collector.commands.terminal import complain
from collector.errors import ConfigError
from collector.watch.messages import rfc3339, subject
from collector.watch.model import Marks, Record, State
from collector.watch.statefile import changed_marks, load, read_marks

EXIT_CLEAN: Final = 0
EXIT_FINDINGS: Final = 1

_LEAST_PREFIX: Final = 4


def say(options: argparse.Namespace, path: Path | None, now_unix_nano: int) -> int:
    """Do what the options ask; returns the exit code. Raises ConfigError."""
    if path is None:
        raise ConfigError("which watch? give its --state FILE")
    state = _state(path)
    if options.list:
        return _list(state, read_marks(path), options.format, now_unix_nano)
    record = _named(state, options.ack or options.silence or options.clear)
    key = record.finding_id
    with changed_marks(path) as (acknowledged, silenced):
        # Marks of findings that are long gone would gather for ever.
        for gone in [other for other, until in silenced.items() if until <= now_unix_nano]:
            del silenced[gone]
        for gone in [other for other in acknowledged if other not in state.records]:
            del acknowledged[gone]
        if options.ack:
            acknowledged[key] = now_unix_nano
            said = "acknowledged: no more updates of this episode unless it gets more severe"
        elif options.silence:
            silenced[key] = now_unix_nano + options.lasts
            said = f"silenced until {rfc3339(silenced[key])}"
        else:
            acknowledged.pop(key, None)
            silenced.pop(key, None)
            said = "neither acknowledged nor silenced any more"
    complain("watch", f"{key} ({subject(record.row)}): {said}")
    return EXIT_CLEAN


def _state(path: Path) -> State:
    """The state in FILE, whoever's it is; raises ConfigError."""
    try:
        return load(path.read_text(encoding="utf-8")).state
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: no state there; `provenance watch SOURCE --state {path}` writes it") from e
    except OSError as e:
        raise ConfigError(f"the state {path} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path} is no state of `provenance watch` ({type(e).__name__}: {e})") from e


def _named(state: State, text: str) -> Record:
    """The finding with this id, or the only one whose id begins so; raises ConfigError."""
    if text in state.records:
        return state.records[text]
    found = [key for key in state.records if key.startswith(text)] if len(text) >= _LEAST_PREFIX else []
    match found:
        case [key]:
            return state.records[key]
        case []:
            raise ConfigError(f"no finding {text!r} in this state; `provenance watch --list` has their ids")
        case _:
            raise ConfigError(f"{text!r} may be any of {', '.join(sorted(found)[:5])}: write more of it")


def _list(state: State, marks: Marks, form: str, now_unix_nano: int) -> int:
    order = {"open": 0, "pending": 1, "resolved": 2}
    records = sorted(state.records.values(), key=lambda r: (order[r.phase], -r.last_seen_unix_nano))
    rows = [
        {
            "finding_id": record.finding_id,
            "phase": record.phase,
            "severity": record.severity,
            "kind": record.row["kind"],
            "subject": subject(record.row),
            "reasons": list(record.reasons),
            "began": rfc3339(record.began_unix_nano),
            "last_seen": rfc3339(record.last_seen_unix_nano),
            "count": record.count,
            "acknowledged": marks.has_ack(record),
            "silenced_until": rfc3339(marks.silenced[record.finding_id])
            if marks.is_silenced(record.finding_id, now_unix_nano)
            else None,
        }
        for record in records
    ]
    schema = {
        "finding_id": pl.String(), "phase": pl.String(), "severity": pl.String(), "kind": pl.String(), "subject": pl.String(),
        "reasons": pl.List(pl.String()), "began": pl.String(), "last_seen": pl.String(), "count": pl.Int64(),
        "acknowledged": pl.Boolean(), "silenced_until": pl.String(),
    }  # fmt: skip
    write_frame(pl.DataFrame(rows, schema=schema), form, sys.stdout)
    sys.stdout.flush()
    return EXIT_FINDINGS if state.open else EXIT_CLEAN

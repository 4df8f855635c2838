"""What questions that were killed left on the disk: DuckDB removes what it spilled when a question ends, and only then."""

import logging
from pathlib import Path

_log = logging.getLogger(__name__)


def spill_folder(path: Path) -> Path:
    """Where questions to this evidence file spill what does not fit into memory."""
    return path.with_name(f"{path.name}.tmp")


def forget_spilled(path: Path) -> int:
    """Remove what an earlier process left there; returns how many files. Only for who has the file open to write: nobody else has, then."""
    count = 0
    for left in spill_folder(path).glob("duckdb_temp_*"):
        try:
            left.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s, left by a process that was killed, cannot be removed: %s", left, error.strerror or error)
        else:
            count += 1
    return count

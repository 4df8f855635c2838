"""What a file says of the evidence that it has no longer: asked with one SELECT, of a reader.

read_kept(query) -> (evidence_since_unix_nano, removed rows by table)
"""

from collections.abc import Callable
from typing import Final

import pyarrow as pa

from collector.store.retention import REMOVED_KEY, SINCE_KEY

_KEPT: Final = (
    f"SELECT key, value FROM meta WHERE key = '{SINCE_KEY}' OR starts_with(key, '{REMOVED_KEY}') ORDER BY key"
)


def read_kept(query: Callable[[str], pa.Table]) -> tuple[int | None, dict[str, int]]:
    """Before when nothing is left, in ns since the Unix epoch (None while nothing was removed), and how many rows were.

    Raises what the query raises.
    """
    known = {row["key"]: int(row["value"]) for row in query(_KEPT).to_pylist()}
    removed = {key.removeprefix(REMOVED_KEY): rows for key, rows in known.items() if key.startswith(REMOVED_KEY)}
    return known.get(SINCE_KEY), removed

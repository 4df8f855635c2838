"""A request's rows in two, so that a transaction ends where a row group does. Pure.

DuckDB writes a transaction of whole row groups in one piece. What is left over of one goes through its log, is appended to what is
there, and written again at a checkpoint: twice the processor time, and twice the disk.
"""

from collections.abc import Sequence

import pyarrow as pa

from collector.store.insert import OF_SPANS, Batches, owners


def span_count(parts: Sequence[Batches]) -> int:
    """How many rows of `spans` these parts have."""
    return sum(part["spans"].num_rows for part in parts if "spans" in part)


def split(parts: Sequence[Batches], spans: int) -> tuple[list[Batches], list[Batches]]:
    """The first so many spans with what belongs to them, and everything else.

    Whoever has stored the first and not the second reads the request again: spans, what belongs to them, resources and scopes are found to be
    there already. Rows of other tables are not, so they are in the second.
    """
    head: list[Batches] = []
    rest: list[Batches] = []
    for part in parts:
        count = min(spans, part["spans"].num_rows) if "spans" in part else 0
        spans -= count
        if not count:
            rest.append(part)
            continue
        first = {table: part[table] for table in ("resources", "scopes") if table in part}
        other = dict(part)
        first["spans"], other["spans"] = part["spans"].slice(0, count), part["spans"].slice(count)
        belonging = [table for table in OF_SPANS if table in part]
        mine = set(owners(first["spans"])) if belonging else set()
        for table in belonging:
            is_mine = [owner in mine for owner in owners(part[table])]
            first[table] = part[table].filter(pa.array(is_mine, pa.bool_()))
            other[table] = part[table].filter(pa.array([not it_is for it_is in is_mine], pa.bool_()))
        head.append(first)
        rest.append(other)
    return head, rest

"""Access log lines in JSON, by the block: what `envoy.row_of` says of each, said of all that are alike at once."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector.witnesses.blocks import FEWEST_LINES, Lines, Mask, Numbers, Shape, Values
from collector.witnesses.columns import NO_VALUES, Rows, first_of, mapped
from collector.witnesses.envoy import (
    COLUMNS,
    GATEWAY_KEYS,
    PEER_KEYS,
    TEXT_FORMATS,
    Origin,
    direction_of,
    kind_of,
    peer_of,
)
from collector.witnesses.values import schema_of

_TABLE: Final = schema_of("proxy_records")


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of some lines of a block: which lines, and their columns, without ids and what the file says."""

    lines: Numbers
    columns: dict[str, pa.Array]


def json_columns(lines: Lines, origin: Origin) -> list[Found]:
    """The rows of every line that is ordinary; the others are to be read one by one."""
    return [found for shape in lines.shapes() if (found := _shape_columns(shape, origin)) is not None]


def text_columns(lines: Lines, origin: Origin) -> list[Found]:
    """The rows of every ordinary line in a default text format, likewise."""
    candidates = np.flatnonzero(lines.without_controls() & (lines.bytes[lines.starts] == ord("[")))
    shapes = []
    for pattern, quotes in TEXT_FORMATS:
        matches = [
            (number, match.groups())
            for number in candidates.tolist()
            if (text := lines.text(number).decode().strip()).count('"') == quotes and (match := pattern.fullmatch(text))
        ]
        if len(matches) >= FEWEST_LINES:
            values = zip(*(groups for _, groups in matches), strict=True)
            columns = zip(pattern.groupindex, values, strict=True)
            found = {key: Values.of(pa.array(column, pa.string())) for key, column in columns}
            shapes.append(Shape(np.array([number for number, _ in matches]), found))
            candidates = np.setdiff1d(candidates, shapes[-1].lines)
    return [rows for shape in shapes if (rows := _shape_columns(shape, origin)) is not None]


def _shape_columns(shape: Shape, origin: Origin) -> Found | None:
    if "start_time" not in shape.columns:
        return None  # under which of the usual names a custom format has it, the reader of lines knows
    rows = Rows(shape.columns, len(shape.lines), NO_VALUES)
    columns: dict[str, pa.Array] = {}
    left: dict[str, Mask] = {key: rows.present(key) for key in rows.keys()}  # noqa: SIM118 not a mapping
    for column, (convert, keys) in COLUMNS.items():
        columns[column] = _column(rows, column, kind_of(convert), [key for key in keys if rows.has(key)], left)
    left = {key: mask for key, mask in left.items() if mask.any()}
    columns["downstream_peer"] = _peers(rows, left)
    columns["format"] = _formats(rows, columns["upstream_cluster"], origin)
    columns["direction"] = mapped(
        columns["upstream_cluster"], pa.string(), lambda c: direction_of(c) or origin.direction
    )
    columns["direction"] = first_of([columns["direction"], _constant(origin.direction, rows.count)])
    columns["downstream_peer"] = _unless_outbound(columns["downstream_peer"], columns["direction"])
    columns["attributes"] = rows.attributes(left)
    return usual_rows(shape.lines, columns, rows.unusual)


def usual_rows(lines: Numbers, columns: dict[str, pa.Array], unusual: Mask) -> Found | None:
    """What was found of the rows that are not unusual; None where all are."""
    if unusual.all():
        return None
    if unusual.any():
        usual = pa.array(~unusual)
        lines, columns = lines[~unusual], {name: column.filter(usual) for name, column in columns.items()}
    return Found(lines, columns)


def _column(rows: Rows, column: str, kind: str, keys: list[str], left: dict[str, Mask]) -> pa.Array:
    """One column from the keys that fill it; what is used is taken from `left`."""
    if kind == "trace_id":
        # No mesh logs it by default; where one does, each line's is another.
        for key in keys:
            rows.unusual |= rows.present(key)
        return pa.nulls(rows.count, pa.uuid())
    arrays = []
    filled = np.zeros(rows.count, np.bool_)
    for key in keys:
        arrays.append(_read(rows, kind, key))
        used = rows.present(key) & ~filled
        filled |= used
        left[key] = left[key] & ~used
    return first_of(arrays) if arrays else pa.nulls(rows.count, _TABLE.field(column).type)


def _read(rows: Rows, kind: str, key: str) -> pa.Array:
    match kind:
        case "count":
            return rows.counts(key)
        case "milliseconds":
            return rows.counts(key, most_digits=12, scale=1_000_000)
        case "time":
            return rows.times(key)
        case _:
            return rows.strings(key)


def _peers(rows: Rows, left: dict[str, Mask]) -> pa.Array:
    def peers(key: str) -> pa.Array:
        return rows.mapped(key, pa.string(), lambda text: peer_of(key, text) or None)

    arrays = [peers(key) for key in PEER_KEYS if key in left]
    return first_of(arrays) if arrays else pa.nulls(rows.count, pa.string())


def _formats(rows: Rows, clusters: pa.Array, origin: Origin) -> pa.Array:
    if origin.format is not None:
        return _constant(origin.format, rows.count)
    by_cluster = mapped(clusters, pa.string(), lambda cluster: "istio" if direction_of(cluster) else "envoy")
    formats = by_cluster.fill_null("envoy")
    for key in GATEWAY_KEYS:
        if rows.has(key):
            formats = pc.if_else(pa.array(rows.present(key)), "envoy-gateway", formats)
    return formats


def _constant(text: str | None, count: int) -> pa.Array:
    return pa.nulls(count, pa.string()) if text is None else pa.repeat(pa.scalar(text), count)


def _unless_outbound(peers: pa.Array, directions: pa.Array) -> pa.Array:
    if peers.null_count == len(peers):
        return peers
    outward = pc.fill_null(pc.equal(directions, "outbound"), fill_value=False)
    return pc.if_else(outward, pa.scalar(None, pa.string()), peers)

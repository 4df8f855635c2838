"""Rows of any table, valid unless a test says otherwise."""

import itertools
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pyarrow as pa

from collector import schema

_numbers = itertools.count(1)


def make_row(table: str, **overrides: Any) -> dict[str, Any]:
    """One row: required columns filled, the others NULL."""
    number = next(_numbers)
    required: Mapping[str, Any] = {"UUID": UUID(int=number), "VARCHAR": f"text {number}"}
    row = {c.name: required.get(c.type, number) if c.required else None for c in schema.TABLES[table]}
    assert overrides.keys() <= row.keys()
    return row | overrides


def make_batch(table: str, *rows: Mapping[str, Any], **overrides: Any) -> pa.RecordBatch:
    """A batch of these rows, or of one made of the overrides."""
    chosen = rows or (make_row(table, **overrides),)
    arrow = schema.arrow_schema(table)
    arrays = [pa.array([row[f.name] for row in chosen], f.type) for f in arrow]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow)

"""Ids as people and other programs write them: lowercase hex, 32 digits for a trace and 16 for a span.

DuckDB hands trace ids over as hyphenated UUID text and span ids as unsigned integers; engines without those types store
hex already. Both pass.
"""

import polars as pl


def trace_id_hex(value: str | None) -> str | None:
    """32 lowercase hex digits, from hyphenated or plain hex; None stays None."""
    return None if value is None else value.replace("-", "").lower()


def span_id_hex(value: int | str | None) -> str | None:
    """16 lowercase hex digits, from an integer or from hex; None stays None."""
    if value is None:
        return None
    return value.lower() if isinstance(value, str) else f"{value:016x}"


def hex_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every `*trace_id` and `*span_id` column as hex text; other columns as they were."""
    columns = [
        column.map_elements(trace_id_hex, return_dtype=pl.String)
        if column.name.endswith("trace_id")
        else column.map_elements(span_id_hex, return_dtype=pl.String)
        for column in frame
        if column.name.endswith(("trace_id", "span_id"))
    ]
    return frame.with_columns(columns)

r"""Columns that need no escape, as text, a column at a time: a value at a time, a million calls took twenty seconds to print.

Plain is a column of integers, of printable ASCII without `"` and `\\`, or of lists of such text; NULL may be in each.
"""

from typing import Final

import polars as pl

_PLAIN: Final = r"^[ !#-\[\]-~]*$"


def plain_text(column: pl.Series) -> pl.Series | None:
    """The values as text, NULL where there is none; None if the column is not plain, or of lists."""
    if column.dtype.is_integer():
        return column.cast(pl.String)
    return column if column.dtype == pl.String and _is_plain(column) else None


def plain_json(column: pl.Series) -> pl.Series | None:
    """The values as `json.dumps` writes them; None if the column is not plain."""
    if column.dtype == pl.List(pl.String):
        if not _is_plain(column.explode()) or column.list.eval(pl.element().is_null().any()).explode().any():
            return None
        quoted = column.list.eval('"' + pl.element() + '"').list.join(", ")
        return ("[" + quoted + "]").fill_null("null")
    text = plain_text(column)
    if text is None:
        return None
    return (text if column.dtype.is_integer() else '"' + text + '"').fill_null("null")


def plain_csv(column: pl.Series) -> pl.Series | None:
    """The values as fields of a CSV file, lists as JSON; None if the column is not plain."""
    if column.dtype == pl.List(pl.String):
        fields = plain_json(column)
        fields = None if fields is None else fields.set(column.is_null(), "")
    else:
        fields = plain_text(column)
    if fields is None:
        return None
    named = fields.fill_null("").alias("field").to_frame()
    quoted = '"' + pl.col("field").str.replace_all('"', '""', literal=True) + '"'
    needed = pl.col("field").str.contains('[",]')
    return named.select(pl.when(needed).then(quoted).otherwise(pl.col("field"))).to_series()


def padded(text: pl.Series, width: int, *, right: bool) -> pl.Series:
    """ASCII text without NULL, filled up or cut to a width in cells; an ellipsis stands for what was cut off."""
    cut = pl.when(pl.col("cell").str.len_chars() > width).then(pl.col("cell").str.slice(0, width - 1) + "…")
    cell = cut.otherwise(pl.col("cell"))
    cell = cell.str.pad_start(width) if right else cell.str.pad_end(width)
    return text.alias("cell").to_frame().select(cell).to_series()


def _is_plain(column: pl.Series) -> bool:
    return bool(column.drop_nulls().str.contains(_PLAIN).all())

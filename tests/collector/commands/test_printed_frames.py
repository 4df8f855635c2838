"""Frames as they are printed: the rendered text is the assertion."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.commands.output import FORMATS, render_table, write_frame
from collector.commands.terminal import escape

FRAME = pl.DataFrame({
    "service": ["checkout", "payment"],
    "n": [12, 3],
    "ratio": [0.25, None],
    "trace_id": ["4bf92f35-77b3-4da6-a3ce-929d0e0e4736", None],
    "reasons": [["unstamped", "mesh_bypass"], []],
    "attributes": pl.Series([[{"key": "a", "value": "b"}], []]),
})  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(frame: pl.DataFrame, format_: str, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    write_frame(frame, format_, stream)
    return stream.getvalue()


def test_table() -> None:
    assert printed(FRAME, "table") == (
        "service    n  ratio  trace_id                              reasons                 attributes\n"
        "--------  --  -----  ------------------------------------  ----------------------  ----------\n"
        "checkout  12   0.25  4bf92f35-77b3-4da6-a3ce-929d0e0e4736  unstamped, mesh_bypass  a=b\n"
        "payment    3\n"
    )


def test_json_and_ndjson_have_the_same_rows() -> None:
    rows = [
        {
            "service": "checkout",
            "n": 12,
            "ratio": 0.25,
            "trace_id": "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
            "reasons": ["unstamped", "mesh_bypass"],
            "attributes": {"a": "b"},
        },
        {"service": "payment", "n": 3, "ratio": None, "trace_id": None, "reasons": [], "attributes": {}},
    ]

    assert json.loads(printed(FRAME, "json")) == rows
    assert [json.loads(line) for line in printed(FRAME, "ndjson").splitlines()] == rows


def test_csv() -> None:
    assert printed(FRAME, "csv") == (
        "service,n,ratio,trace_id,reasons,attributes\n"
        'checkout,12,0.25,4bf92f35-77b3-4da6-a3ce-929d0e0e4736,"[""unstamped"", ""mesh_bypass""]","{""a"": ""b""}"\n'
        "payment,3,,,[],{}\n"
    )


def test_no_rows() -> None:
    empty = FRAME.clear()

    assert printed(empty, "json") == "[]\n"
    assert printed(empty, "ndjson") == ""
    assert printed(empty, "csv") == "service,n,ratio,trace_id,reasons,attributes\n"
    assert printed(empty, "table").splitlines()[0].split() == empty.columns


@pytest.mark.parametrize("format_", FORMATS)
def test_no_columns(format_: str) -> None:
    assert printed(pl.DataFrame(), format_).strip() in {"", "[]"}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="no format 'xml'; there are table, json, ndjson, csv"):
        write_frame(FRAME, "xml", io.StringIO())


def test_values_of_every_type_are_json() -> None:
    frame = pl.DataFrame({
        "big": [2**64 - 1],
        "decimal": [Decimal(2**63)],
        "fraction": [Decimal("0.5")],
        "nan": [float("nan")],
        "inf": [float("inf")],
        "flag": [True],
        "bytes": [b"\x00\xff"],
        "at": [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)],
        "took": [timedelta(milliseconds=1500)],
        "nested": [{"a": [{"b": None}, {"b": 1}]}],
        "null": [None],
    }, schema_overrides={"big": pl.UInt64})  # fmt: skip

    assert json.loads(printed(frame, "json")) == [
        {
            "big": 2**64 - 1,
            "decimal": 2**63,
            "fraction": 0.5,
            "nan": None,
            "inf": None,
            "flag": True,
            "bytes": "00ff",
            "at": "2026-01-02T03:04:05+00:00",
            "took": 1.5,
            "nested": {"a": [{"b": None}, {"b": 1}]},
            "null": None,
        }
    ]


HOSTILE = "a\x1b[2Jb\nc\rd\x9be\u202ef\x00g\x7fh\ud800"
SEEN = r"a\x1b[2Jb\x0ac\x0dd\x9be\u202ef\x00g\x7fh"


def test_recorded_text_cannot_drive_the_terminal() -> None:
    assert escape(HOSTILE) == SEEN + r"\ud800"
    frame = pl.DataFrame({HOSTILE[:-1]: [HOSTILE[:-1]], "list": [[HOSTILE[:-1]]]})

    table = printed(frame, "table")
    assert SEEN in table
    for format_ in ("table", "json", "ndjson", "csv"):
        text = printed(frame, format_, Terminal())
        assert not set(text) & set("\x1b\x9b\x7f\u202e\x00\r"), format_


def test_hostile_text_survives_json_and_csv_exactly() -> None:
    frame = pl.DataFrame({"x": [HOSTILE[:-1]]})

    assert json.loads(printed(frame, "json")) == [{"x": HOSTILE[:-1]}]
    read = list(csv.reader(io.StringIO(printed(frame, "csv"), newline="")))
    assert read == [["x"], [HOSTILE[:-1]]]


def test_a_narrow_terminal_cuts_text_and_keeps_ids_whole() -> None:
    frame = pl.DataFrame(
        {
            "trace_id": ["4bf92f3577b34da6a3ce929d0e0e4736"],
            "explanation": ["word " * 40],
            "n": [123456],
        }
    )

    header, rule, row = render_table(frame, width=80)
    assert max(map(len, (header, rule, row))) <= 80
    assert row.startswith("4bf92f3577b34da6a3ce929d0e0e4736  word word")
    assert "…" in row
    assert row.endswith("123456")
    assert "4bf92f3577b34da6a3ce929d0e0e4736" in render_table(frame, width=10)[2]


def test_a_pipe_gets_whole_lines() -> None:
    assert "…" not in printed(pl.DataFrame({"x": ["word " * 400]}), "table")


def test_wide_characters_line_up() -> None:
    lines = render_table(pl.DataFrame({"a": ["日本", "é", "e\u0301"], "b": ["x", "x", "x"]}), width=None)

    assert lines[2:] == ["日本  x", "é     x", "e\u0301     x"]


PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=16)


@given(
    st.lists(
        st.tuples(
            st.none() | PLAIN, st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.lists(PLAIN, max_size=3)
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(FORMATS),
)
@settings(deadline=None)
def test_what_is_printed_a_column_at_a_time_reads_as_what_is_printed_value_by_value(
    rows: list[tuple[str | None, int | None, list[str] | None]], format_: str
) -> None:
    """One value that is not plain has its whole column printed the other way: the other rows must stay as they are."""
    schema: dict[str, pl.DataType] = {
        "some_longer_title": pl.String(),
        "number": pl.Int64(),
        "several_of_them": pl.List(pl.String),
    }
    odd = ("é", 0, ["é"])
    plain, other = (printed(pl.DataFrame(part, schema, orient="row"), format_) for part in (rows, [*rows, odd]))
    last = 2 if format_ == "json" else 1
    lines, others = plain.splitlines(), other.splitlines()
    if format_ == "json":
        lines, others = lines[:-1], [line.removesuffix(",") for line in others]
        lines = [line.removesuffix(",") for line in lines]
    if format_ != "table" or [len(cell) for cell in lines[1].split("  ")] == [
        len(cell) for cell in others[1].split("  ")
    ]:
        assert others[:-last] == lines

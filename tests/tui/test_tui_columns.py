from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui.columns import Cell, Column, arrange, heading, row, table
from tui.document import Block, compose
from tui.line import text_of
from tui.views import calls, findings, traces

COLUMNS = (Column("A", 4), Column("B", 5, grow=1, rank=1), Column("C", 6, grow=2, rank=2, most=9, right=True))


def test_columns_leave_in_the_order_of_their_rank():
    assert arrange(COLUMNS, 30) == [(0, 4), (1, 15), (2, 9)]
    assert [i for i, _ in arrange(COLUMNS, 16)] == [0, 1]
    assert [i for i, _ in arrange(COLUMNS, 8)] == [0]
    assert [i for i, _ in arrange(COLUMNS, 1)] == [0], "a column without a rank never leaves"


@given(st.integers(70, 300), st.sampled_from([findings.COLUMNS, calls.COLUMNS, traces.COLUMNS]))
def test_every_table_fits_from_seventy_cells_on(width, columns):
    assert cell_len(text_of(heading(columns, width))) <= width
    assert cell_len(text_of(row(columns, [Cell("日本語" * 40)] * len(columns), width))) <= width


def test_a_series_is_as_wide_as_its_column():
    line = row((Column("", 4), Column("", 3)), (Cell("x"), Cell("", series=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))), 10)
    assert text_of(line) == "x    ▂▅▇"


def test_a_table_finds_its_rows_by_key():
    rows = table(COLUMNS, ["x", "y"], str.upper, lambda item: (Cell(item), Cell("b"), Cell("c")))
    assert (rows.key(1), rows.find("Y"), rows.find("Z"), len(rows)) == ("Y", 1, None, 2)


@given(
    st.lists(st.builds(Block, st.text(max_size=30), st.text(max_size=200), key=st.none() | st.text(max_size=3))),
    st.integers(12, 90),
)
def test_a_document_never_runs_over_its_width(blocks, width):
    rows = compose(blocks, width)
    assert len(rows.keys) == len(rows)
    assert all(cell_len(text_of(rows.line(i, width))) <= width for i in range(len(rows)))


def test_only_the_first_line_of_a_paragraph_can_be_chosen():
    rows = compose([Block("", "one two three four", key="k")], 10)
    assert rows.keys == ("k", None)
    assert rows.find("k") == 0
    assert rows.find("other") is None

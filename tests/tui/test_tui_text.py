import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui.text import (
    REPLACEMENT,
    age,
    ago,
    clean,
    clock_time,
    duration,
    fit,
    number,
    percent,
    plural,
    rate,
    sparkline,
    utc,
    wrap,
)

# Every plane, and more often what is dangerous: escapes, bidi controls, zero-width, combining marks, surrogates.
nasty = st.one_of(
    st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=[])),
    st.text(st.sampled_from("\x00\x07\x1b\x9b\u202e\u2066\u200b\u200d\ufe0f\u0301\ud800\U000e0041[]/ab \t\r\n日本👩")),
)


@given(nasty)
def test_nothing_that_misleads_a_terminal_or_an_eye_remains(text):
    cleaned = clean(text)
    for char in cleaned:
        assert unicodedata.category(char)[0] != "C", repr(char)
        assert char.isprintable(), repr(char)
    marks = 0
    for char in cleaned:
        marks = marks + 1 if unicodedata.category(char) in {"Mn", "Me"} else 0
        assert marks <= 2


@given(nasty)
def test_cleaning_twice_is_cleaning_once(text):
    assert clean(clean(text)) == clean(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=60))
def test_ordinary_text_is_left_alone(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /\x1b[2J", f"GET /{REPLACEMENT}[2J"),
        ("pay\u202etnem", f"pay{REPLACEMENT}tnem"),
        ("a\tb\nc", "a b c"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("zero\u200bwidth", f"zero{REPLACEMENT}width"),
        ("\u0301orphaned mark", "orphaned mark"),
        ("Z" + "\u0301" * 40, "Z\u0301\u0301"),
        ("日本", "日本"),
    ],
)
def test_what_was_there_stays_visible(text, expected):
    assert clean(text) == expected


@given(nasty, st.integers(0, 40), st.booleans(), st.booleans())
def test_fitted_text_has_exactly_that_many_cells(text, width, right, keep_end):
    assert cell_len(fit(text, width, right=right, keep_end=keep_end)) == width


def test_fit_cuts_where_it_is_told_to():
    assert fit("abcdef", 4) == "abc…"
    assert fit("abcdef", 4, keep_end=True) == "…def"
    assert fit("ab", 4, right=True) == "  ab"


@given(nasty, st.integers(2, 40))
def test_wrapped_lines_are_never_wider_and_lose_no_word(text, width):
    lines = wrap(text, width)
    assert lines
    assert all(cell_len(line) <= width for line in lines)
    kept = "".join("".join(lines).split())
    assert kept == "".join("".join(clean(part) for part in text.splitlines()).split())


def test_wrap_breaks_at_spaces_and_counts_what_it_leaves_out():
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert wrap("", 10) == [""]
    assert wrap("x" * 30, 10, limit=10) == ["x" * 10, "… 20 more characters"]


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (None, "·"), (0, "0ns"), (999, "999ns"), (1_000, "1.00µs"), (4_100_000, "4.10ms"), (41_000_000, "41.0ms"),
        (229_000_000, "229ms"), (999_700_000, "1.00s"), (59_960_000_000, "60.0s"), (61_000_000_000, "1m01s"), (3_600_000_000_000, "1h00m"),
        (-5_000_000, "-5.00ms"),
    ],
)  # fmt: skip
def test_durations_have_three_digits(ns, shown):
    assert duration(ns) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")]
)
def test_ages_have_one_unit(seconds, shown):
    assert age(seconds * 1_000_000_000) == shown


def test_a_sender_whose_clock_is_ahead_is_not_in_the_past():
    assert ago(10_000_000_000, 4_000_000_000) == "6s ahead"
    assert ago(4_000_000_000, 10_000_000_000) == "6s ago"
    assert ago(None, 0) == "·"


def test_times_are_utc_and_impossible_ones_are_shown_as_they_are():
    assert utc(1_795_403_647_123_456_789) == "2026-11-23 03:14:07.123Z"
    assert clock_time(1_795_403_647_000_000_000) == "03:14:07Z"
    assert utc(None) == "·"
    assert utc(2**70) == f"{2**70}ns"


def test_small_figures_never_read_as_nothing():
    assert percent(0.0004) == "<0.1%"
    assert percent(0) == "0"
    assert percent(0.0134) == "1.3%"
    assert percent(1) == "100%"
    assert percent(None) == number(None) == rate(None) == "·"
    assert rate(0.0021) == "0.0021"
    assert rate(5.05) == "5.0"
    assert rate(1234.5) == "1,234"
    assert plural(1, "span") == "1 span"
    assert plural(12_345, "span") == "12,345 spans"


def test_sparklines_scale_from_zero_and_show_gaps():
    assert sparkline([0, 5, 10], 10) == "▁▄▇"
    assert sparkline([0, 0], 10) == "▁▁"
    assert sparkline([None, 3], 10) == " ▇"
    assert sparkline([], 10) == ""
    assert sparkline([1, 9, 1, 9], 2) == "▇▇", "a peak is never averaged away"


@given(st.lists(st.one_of(st.none(), st.floats(-1e18, 1e18)), max_size=60), st.integers(0, 30))
def test_a_sparkline_is_never_wider_than_asked(values, width):
    assert cell_len(sparkline(values, width)) <= width

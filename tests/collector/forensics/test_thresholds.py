"""Thresholds from TOML: by reflection, with types checked, and documented as they are."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest

from collector.errors import ConfigError
from collector.forensics.explain import DETECTORS, explain, thresholds_page
from collector.forensics.findings import KINDS
from collector.forensics.thresholds import Thresholds, _filled, attribute_docs, listed, parse_thresholds, toml_value
from collector.forensics.trades import TRADES, trade_of

PAGE = Path(__file__).parents[3] / "docs" / "thresholds.md"


def test_nothing_said_is_the_defaults() -> None:
    assert parse_thresholds("", name="t.toml") == Thresholds()
    assert parse_thresholds("[shadow]\n[latency]\n", name="t.toml") == Thresholds()


def test_what_is_listed_can_be_read_back() -> None:
    lines: list[str] = []
    for one in listed():
        if f"[{one.table}]" not in lines:
            lines.append(f"[{one.table}]")
        if one.value is not None:
            lines.append(f"{one.name} = {toml_value(one.value, one.name)}")
    assert parse_thresholds("\n".join(lines), name="t.toml") == Thresholds()
    assert {one.table.partition(".")[0] for one in listed()} == set(KINDS)


def test_nested_tables_and_units() -> None:
    given = parse_thresholds(
        '[latency]\nsample = 9\n[latency.shift]\nmin_increase_ns = "2.5ms"\nmin_ratio = 2\n[shadow]\nsettle_ns = 7\n',
        name="t.toml",
    )
    assert (given.latency.sample, given.latency.shift.min_increase_ns, given.shadow.settle_ns) == (9, 2_500_000, 7)
    assert given.latency.shift.min_ratio == 2.0
    assert isinstance(given.latency.shift.min_ratio, float)
    assert given.egress == Thresholds().egress


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[shadow", "t.toml: not TOML"),
        ("[shadows]", "t.toml: shadows: no such threshold; did you mean shadow?"),
        ("[zzz]", "t.toml: zzz: no such threshold; there are shadow, latency, egress"),
        ("shadow = 3", "t.toml: shadow: expected a table [shadow], got int 3"),
        ("[shadow]\nsetle_ns = 3", "t.toml: shadow.setle_ns: no such threshold; did you mean shadow.settle_ns?"),
        ("[latency.shift]\nmin_rato = 3", "t.toml: latency.shift.min_rato: no such threshold; did you mean latency.shift.min_ratio?"),
        ('[shadow]\nsettle_ns = "soon"', 't.toml: shadow.settle_ns: expected a duration like "15s" or "250ms", or whole nanoseconds, got'),
        ("[shadow]\nsettle_ns = true", "t.toml: shadow.settle_ns: expected a duration"),
        ("[shadow]\nsettle_ns = -1", "t.toml: shadow.settle_ns: expected a duration"),
        ("[shadow]\nsettle_ns = 1.5", "t.toml: shadow.settle_ns: expected a duration"),
        ('[shadow]\nsettle_ns = "900000000000d"', "t.toml: shadow.settle_ns: expected a duration"),
        ("[shadow]\ninfer_entries = 1", "t.toml: shadow.infer_entries: expected true or false, got int 1"),
        ('[shadow]\nentry_services = "gateway"', "t.toml: shadow.entry_services: expected a list, each item a text, got str 'gateway'"),
        ("[shadow]\nentry_services = [1]", "t.toml: shadow.entry_services[0]: expected a text, got int 1"),
        ("[latency.shift]\nmin_ratio = nan", "t.toml: latency.shift.min_ratio: expected a number from 0, got float nan"),
        ("[latency.shift]\nmin_ratio = inf", "t.toml: latency.shift.min_ratio: expected a number from 0"),
        ("[latency.shift]\nmax_chance = 0.0", "t.toml: latency.shift.max_chance: expected a number between 0 and 1"),
        ("[latency.shift]\nmin_calls = 0", "t.toml: latency.shift.min_calls: expected a whole number from 1"),
        ("[egress]\npolicy = 3", "t.toml: egress.policy: no such threshold: it is given by a flag of the command"),
        ("[latency.baseline]", "t.toml: latency.baseline: no such threshold: it is given by a flag of the command"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_thresholds(text, name="t.toml")
    assert str(raised.value).startswith(said)


def test_every_threshold_is_documented() -> None:
    assert [f"{one.table}.{one.name}" for one in listed() if len(one.doc) < 10] == []


def test_trades_are_of_thresholds_that_exist_and_every_number_has_one() -> None:
    keys = {f"{one.table}.{one.name}": one for one in listed()}
    assert [key for key in TRADES if key not in keys] == []
    numbers = [one for one in keys.values() if isinstance(one.value, int | float) and not isinstance(one.value, bool)]
    assert [one.name for one in numbers if not all(trade_of(one))] == []


def test_words_and_numbers_of_new_classes_are_read_by_reflection() -> None:
    @dataclasses.dataclass(frozen=True)
    class Inner:
        """One.

        Attributes:
            words: Some.
            maybe: Perhaps a number.
        """

        words: tuple[Literal["spans", "flows"], ...] = ("spans",)
        maybe: int | None = None

    assert _filled(Inner(), {"words": ["flows"], "maybe": 3}, "t", "") == Inner(("flows",), 3)
    with pytest.raises(ConfigError, match=r"t: words\[0\]: expected one of spans, flows, got str 'flow'"):
        _filled(Inner(), {"words": ["flow"]}, "t", "")


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == thresholds_page(), (
        "write it again: python -m collector.forensics.explain > docs/thresholds.md"
    )


def test_docstrings_are_read_as_they_are_written() -> None:
    @dataclasses.dataclass
    class Whole:
        """One sentence for all of them."""

        a: int = 1

    @dataclasses.dataclass
    class Parts:
        """What.

        Attributes:
            a: First: with a colon,
                and a second line.
            b, c: Second.
        """

        a: int = 1
        b: int = 2
        c: int = 3

    assert attribute_docs(Whole) == {"a": "One sentence for all of them."}
    assert attribute_docs(Parts) == {"a": "First: with a colon, and a second line.", "b": "Second.", "c": "Second."}


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (15 * 10**9, "x_ns", '"15s"'),
        (1, "x_ns", '"1ns"'),
        (0, "x_ns", "0"),
        (5, "x", "5"),
        (True, "x", "true"),
        (('a"b',), "x", '["a\\"b"]'),
    ],
)
def test_values_are_shown_as_toml(value: Any, name: str, text: str) -> None:
    assert toml_value(value, name) == text


@pytest.mark.parametrize("kind", KINDS)
def test_an_explanation_has_rules_thresholds_needs_and_limits(kind: Any) -> None:
    told = explain(kind)
    places = [told.index(title) for title in ("\n\n1. ", "THRESHOLDS", "WHAT IT NEEDS TO SEE", "WHAT IT CANNOT SEE")]
    assert places == sorted(places)
    assert all(
        f"\n{one.name} = {toml_value(one.value, one.name)}\n" in told
        for one in listed(kind=kind)
        if one.value is not None
    )
    assert "changed" not in told
    assert set(DETECTORS) == set(KINDS)


def test_an_explanation_shows_the_thresholds_that_are_given() -> None:
    told = explain("shadow", parse_thresholds('[shadow]\nsettle_ns = "1m"', name="t.toml"))
    assert 'settle_ns = "1m"  # changed; the default is "15s"\n' in told

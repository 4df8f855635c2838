"""A finding's identity and order: what the workbench selects by and what a person reads first."""

from collector.forensics.findings import SCHEMA, Finding, to_frame


def make_finding(**overrides: object) -> Finding:
    values: dict[str, object] = {
        "kind": "shadow",
        "reasons": ("unstamped",),
        "severity": "high",
        "score": 0.5,
        "first_seen_unix_nano": 10,
        "last_seen_unix_nano": 20,
        "count": 3,
        "explanation": "3 calls",
        "callee": "payment",
    }
    return Finding(**(values | overrides))  # type: ignore[arg-type]


def test_an_empty_list_is_a_frame_with_all_columns() -> None:
    assert dict(to_frame([]).schema) == SCHEMA


def test_the_most_severe_comes_first_then_the_surest_then_the_oldest() -> None:
    frame = to_frame(
        [
            make_finding(severity="low", score=1.0, callee="a"),
            make_finding(severity="critical", score=0.2, callee="b"),
            make_finding(severity="critical", score=0.9, callee="c", first_seen_unix_nano=9),
            make_finding(severity="critical", score=0.9, callee="d", first_seen_unix_nano=8),
        ]
    )

    assert frame["callee"].to_list() == ["d", "c", "b", "a"]


def test_the_id_follows_the_subject_and_not_the_numbers() -> None:
    first = make_finding()

    assert first.finding_id == make_finding(count=99, severity="low", explanation="99 calls").finding_id
    assert first.finding_id != make_finding(callee="inventory").finding_id
    assert first.finding_id != make_finding(caller="payment", callee=None).finding_id

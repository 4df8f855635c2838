"""The stamp attacks' short form; `make stamp-attacks` is the long one."""

from pathlib import Path

import pytest

from tests.campaigns import stamps


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", stamps.TRANSPORTS)
def test_every_meddling_is_told_and_no_clean_call_is_accused(tmp_path: Path, transport: str) -> None:
    report = stamps.run(tmp_path, calls=300, seed=4, transport=transport)

    assert report["wrong"] == []
    assert set(report["matrix"]) == {stamps.CLEAN, stamps.ANOTHERS_KEY, *stamps.EXPECTED}
    assert report["matrix"][stamps.CLEAN]["tried"] > 200
    assert report["judged_calls"] > 300


def test_meddling_changes_what_it_says_and_nothing_else() -> None:
    headers = {"provenance": 'v=1, kid="web/1", t=1, n=:A:, mac=:B:', "traceparent": "00-1-2-01", "x-request-id": "r"}
    for attack in (*stamps.OF_UNARY, stamps.CLEAN):
        method, body, sent = stamps.meddle(attack, "/till.Till/Pay", b"body", headers)
        changed = (method != "/till.Till/Pay", body != b"body", sent != headers)
        assert sum(changed) == (0 if attack in {stamps.CLEAN, "replayed"} else 1), attack
        assert sent["x-request-id"] == "r"

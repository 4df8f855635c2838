"""The crash campaign's short form: a few kills of each kind; `make crash` is the long one."""

import random

import pytest

from tests.campaigns import crash
from tests.campaigns.ledger import Ledger, check_file, make_request
from tests.campaigns.process import CampaignError, end_all

pytestmark = pytest.mark.slow


@pytest.fixture
def findings():
    yield crash.Findings()
    end_all()


@pytest.mark.timeout(240)
def test_kills_under_load_lose_nothing_and_leave_nothing_twice(tmp_path, findings):
    crash.Campaign(tmp_path, findings, seed=3).run(2, check_every=1, pause_s=0.05)

    assert findings.is_clean, findings.report()
    assert findings.kills.total() == 2
    assert findings.acknowledged_spans > 0
    assert findings.checks >= 2


@pytest.mark.timeout(240)
def test_a_kill_at_birth_leaves_what_can_be_opened(tmp_path, findings):
    crash.births(tmp_path, findings, random.Random(5), 1)

    assert findings.is_clean, findings.report()


@pytest.mark.timeout(240)
def test_a_full_disk_is_forgotten_once_there_is_room(tmp_path, findings):
    try:
        crash.full_disk(tmp_path, findings, seed=4, rounds=2)
    except CampaignError as error:
        if "no small filesystem" in str(error):
            pytest.skip(str(error))
        raise

    assert findings.is_clean, findings.report()
    assert findings.acknowledged_spans > 0


# --- the judge: what it must find -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file with three requests, two of them acknowledged, and their ledger."""
    from collector.otlp import decode_group
    from collector.store.database import Store
    from collector.store.writer import Writer

    ledger = Ledger(1)
    payloads = [ledger.next_request()[1] for _ in range(3)]
    for number in (0, 1):
        ledger.acknowledge(number)
    path = tmp_path_factory.mktemp("judged") / "evidence.duckdb"
    with Store.open(path) as store, Writer(store) as writer:
        for part in decode_group(payloads, [1, 2, 3]).parts:
            writer.append(part).result(30)
    return path, ledger


def test_a_file_with_all_that_was_sent_has_no_defects(stored):
    path, ledger = stored
    verdict = check_file(path, ledger.table())

    assert verdict.defects == {}
    assert 0 < verdict.acknowledged_spans < verdict.stored_spans


@pytest.mark.parametrize(
    ("damage", "defect"),
    [
        ("DELETE FROM spans WHERE span_id >> 16 = 1", "lost_spans"),
        ("DELETE FROM spans WHERE span_id = 2 << 16 | 2", "torn_requests"),
        ("INSERT INTO spans FROM spans WHERE span_id >> 16 = 1 LIMIT 1", "duplicated_spans"),
        ("UPDATE spans SET name = 'x' WHERE span_id >> 16 = 1", "altered_spans"),
        ("UPDATE spans SET span_id = span_id + (99 << 16) WHERE span_id >> 16 = 2", "unknown_spans"),
        ("DELETE FROM span_events WHERE name = 'event 1'", "events_lost"),
        ("INSERT INTO span_events FROM span_events LIMIT 1", "events_duplicated"),
        ("DELETE FROM span_links", "links_lost"),
        ("INSERT INTO span_links FROM span_links LIMIT 1", "links_duplicated"),
        ("DELETE FROM resources WHERE service_name = 'service-1'", "without_resource"),
        ("DELETE FROM scopes WHERE name = 'scope-1'", "without_scope"),
        ("INSERT INTO scopes FROM scopes LIMIT 1", "repeated_origins"),
        ("DELETE FROM trace_arrivals", "without_arrival"),
        ("DELETE FROM attribute_keys", "unlisted_keys"),
    ],
)
def test_the_judge_sees_every_kind_of_damage(stored, tmp_path, damage, defect):
    from collector.store.database import Store

    path, ledger = stored
    damaged = tmp_path / "evidence.duckdb"
    damaged.write_bytes(path.read_bytes())
    with Store.open(damaged) as store:
        store.cursor().execute(damage)

    assert check_file(damaged, ledger.table()).defects.get(defect, 0) > 0


def test_a_request_follows_from_its_number():
    assert make_request(7, 20) == make_request(7, 20) != make_request(8, 20)

"""The attack campaign's short form: one attack of each family on one collector; `make attack` is the long one."""

import time
from dataclasses import replace

import pytest

from tests.campaigns import attack, fuzz, hostile, wire
from tests.campaigns.attacks import Target
from tests.campaigns.process import Collector, end_all

pytestmark = pytest.mark.slow

ONE_OF_EACH = (
    "slow: gRPC, 40 halves of messages",
    "idle: 2,000 HTTP connections",
    "HTTP: shapes of smuggling and of nonsense",
    "HTTP/2: rapid reset",
    "bomb: zstd, 10 GiB, 16 at once",
    "bomb: gRPC gzip, 1 GiB, 16 at once",
    "body: 1 GiB announced, 16 at once",
    "dense: a scope of a million keys, HTTP",
    "deep: groups 8,000,000 deep in a span, HTTP",
    "JSON: arrays 1,000,000 deep",
    "logs: a deep body, gRPC",
    "query: brackets, 4 at once",
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    collector = Collector(tmp_path_factory.mktemp("campaign") / "attacked")
    collector.directory.mkdir()
    attack.allow_files()
    campaign = attack.Campaign(collector, seconds=0.5, seed=1)
    yield campaign
    assert campaign.finish() == []
    end_all()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_attack_costs_little_and_shows_nothing(campaign, name):
    row = campaign.run(name, attack.every_attack()[name])

    # A busy machine takes its time, and frees what it is done with later: how long and how much is the long form's business.
    assert [miss for miss in row.misses if not miss.startswith(("answers after", "peak of"))] == [], row
    assert row.peak_mb < 1.5 * attack.PEAK_MB
    assert row.good_spans > 0


def test_a_good_span_that_is_not_found_is_a_miss():
    row = attack.Row("a", 1, 100, 200, 0.1, 9, 0.1, 0, 0, True, {}, [], [], 9)
    assert row.misses == []
    assert replace(row, lost=1).misses == ["1 acknowledged spans lost"]
    assert replace(row, peak_mb=501).misses == ["peak of 501 MB"]
    assert replace(row, answered_s=1.1).misses == ["answers after 1.1 s"]
    assert replace(row, survived=False).misses == ["the process died"]
    assert replace(row, leaks=["Traceback"]).misses == ["traceback to a client"]


def test_an_answer_with_a_traceback_is_a_leak():
    target = Target(1, 2)
    target.saw("500", b"all is well")
    assert target.leaks == []
    target.saw("500", b"Traceback (most recent call last): ...")
    assert len(target.leaks) == 1


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS))
def test_decoders_raise_nothing_else_on_mutated_requests(name):
    begun = time.monotonic()
    report = fuzz.mutated(name, 2.0, 7)

    assert "raised" not in report, report
    assert time.monotonic() - begun < 60


def test_bombs_are_what_they_say():
    from collector.errors import DecodeError
    from collector.receiver.inflate import inflate

    size = 64 * hostile.MIB
    for make, encoding in ((hostile.gzip_bomb, "gzip"), (hostile.zstd_bomb, "zstd")):
        assert len(inflate(make(size), encoding, size)) == size
        with pytest.raises(DecodeError, match="exceeds"):
            inflate(make(2 * size), encoding, size)
    with pytest.raises(DecodeError, match="exceeds"):
        inflate(hostile.deflate_bomb(size), "deflate", size)


def test_a_frame_is_what_http_2_says():
    assert wire.frame(wire.PING, wire.ACK, 0, b"12345678") == bytes.fromhex("000008060100000000") + b"12345678"
    assert wire.fields((":path", "/x")) == b"\0\x05:path\x02/x"

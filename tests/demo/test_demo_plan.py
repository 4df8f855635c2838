"""The demo's plan: a quiet baseline, seeded stagger, a policy that lists one destination."""

import tomllib

import pytest

from collector.demo.plan import BASELINE_RATIO, INCIDENTS, SERVICES, Plan, Ports, policy_toml


def make_plan(**overrides):
    ports = {service.name: Ports(20_000 + i * 3, 20_001 + i * 3, 20_002 + i * 3) for i, service in enumerate(SERVICES)}
    defaults = {
        "seed": 7,
        "duration_seconds": 60.0,
        "ports": ports,
        "card_network": "127.0.0.7:9000",
        "drop": "127.0.0.9:9001",
    }
    return Plan(**{**defaults, **overrides})


@pytest.mark.parametrize("duration", [30.0, 60.0, 600.0])
@pytest.mark.parametrize("seed", range(20))
def test_incidents_begin_after_the_baseline_and_run_for_at_least_the_rest(seed, duration):
    offsets = make_plan(seed=seed, duration_seconds=duration).offsets()
    assert set(offsets) == set(INCIDENTS)
    assert min(offsets.values()) == pytest.approx(duration * BASELINE_RATIO)
    assert max(offsets.values()) <= duration * 0.56
    assert len(set(offsets.values())) == len(INCIDENTS)


def test_the_seed_decides_the_order():
    orders = {tuple(make_plan(seed=seed).offsets()) for seed in range(40)}
    assert len(orders) > 10
    assert make_plan(seed=3).offsets() == make_plan(seed=3).offsets()


def test_only_what_was_asked_for_is_planted():
    assert set(make_plan(incidents=("egress",)).offsets()) == {"egress"}
    assert make_plan(incidents=()).offsets() == {}


def test_every_callee_is_a_service():
    names = {service.name for service in SERVICES}
    assert {callee for service in SERVICES for callee in service.calls} <= names


def test_the_policy_lists_the_card_network_for_payment_and_nothing_else():
    assert tomllib.loads(policy_toml(make_plan())) == {
        "egress": {"allow": [{"service": "payment", "destination": "127.0.0.7:9000"}]}
    }

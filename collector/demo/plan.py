"""What the demo mesh consists of: services, addresses and the timeline. Pure: the ports, the seed and the start are arguments."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["http", "grpc"]
Incident = Literal["rogue", "bypass", "egress", "slow"]

INCIDENTS: Final[tuple[Incident, ...]] = ("rogue", "bypass", "egress", "slow")

BASELINE_RATIO: Final = 0.4
"""The quiet part at the beginning: an incident is only one against something that was normal."""

STAGGER_RATIO: Final = 0.15
"""All incidents have begun when this part of the duration has passed after the baseline."""

MIN_DURATION_SECONDS: Final = 30.0
"""Shorter, and the quiet part is too short for a latency baseline and the incidents for a beacon."""

MESH_ADDRESS: Final = "127.0.0.1"
CARD_NETWORK_ADDRESS: Final = "127.0.0.7"
DROP_ADDRESS: Final = "127.0.0.9"


@dataclass(frozen=True, slots=True)
class Service:
    """One workload: what it speaks and whom it calls through its sidecar."""

    name: str
    protocol: Protocol
    calls: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The name by which the other services and their sidecars know it."""
        return f"{self.name}.demo"


SERVICES: Final = (
    Service("gateway", "http", ("checkout", "inventory", "pricing")),
    Service("checkout", "grpc", ("payment", "inventory", "pricing")),
    Service("payment", "grpc"),
    Service("inventory", "http"),
    Service("pricing", "grpc"),
)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one workload listens: the application, and its sidecar's two listeners."""

    app: int
    inbound: int
    outbound: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the demo.

    Attributes:
        seed: Of every random draw: traffic, who bypasses, when the incidents begin.
        duration_seconds: From the first request of the load to the last.
        ports: By service name, all on `MESH_ADDRESS`.
        card_network: address:port of the listed destination that payment calls.
        drop: address:port of the destination that nobody listed.
        incidents: Which to plant.
    """

    seed: int
    duration_seconds: float
    ports: Mapping[str, Ports]
    card_network: str
    drop: str
    incidents: tuple[Incident, ...] = INCIDENTS

    def offsets(self) -> dict[Incident, float]:
        """Seconds from the start of the load to each planted incident: after the baseline, staggered in seeded order."""
        order = list(self.incidents)
        random.Random(self.seed).shuffle(order)
        step = STAGGER_RATIO / max(len(INCIDENTS) - 1, 1)
        return {name: self.duration_seconds * (BASELINE_RATIO + step * i) for i, name in enumerate(order)}


def policy_toml(plan: Plan) -> str:
    """The policy file of the mesh: payment may call the card network, and nothing else may leave."""
    return f'[egress]\nallow = [{{service = "payment", destination = "{plan.card_network}"}}]\n'

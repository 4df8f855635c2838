"""The detectors on meshes that they were not written against: every planted incident found, nothing else.

`PROVENANCE_SIMULATED_SEEDS=100-200 pytest -k simulated` tries other meshes, `make campaign` forty; CI tries the first four.
"""

import os
from typing import Any

import polars as pl
import pytest

from collector.forensics.call_list import call_verdicts
from collector.forensics.scan import scan
from collector.forensics.tables import Window
from tests.collector.forensics.factories import store
from tests.collector.forensics.simulated_mesh import Incident, Mesh, simulate


def seeds() -> list[int]:
    first, _, last = os.environ.get("PROVENANCE_SIMULATED_SEEDS", "0-3").partition("-")
    return list(range(int(first), int(last or first) + 1))


def explains(incident: Incident, finding: dict[str, Any]) -> bool:
    """Whether this finding names the incident's subject."""
    first, second = incident.subject
    match incident.kind:
        case "rogue" | "bypass":
            return (finding["kind"], finding["caller"], finding["callee"]) == ("shadow", first, second)
        case "egress":
            return (finding["kind"], finding["caller"], finding["destination"]) == ("egress", first, second)
        case "slow":
            right_operation = (finding["operation"] or "").endswith(f"/{second}")
            return (finding["kind"], finding["callee"]) == ("latency", first) and right_operation


def disagreement(mesh: Mesh) -> dict[str, list[str]]:
    """Incidents that nothing found, and findings that nothing planted."""
    return compared(mesh, scan(store(mesh.spans, mesh.proxy_records, mesh.egress_allow, optimized=True)).to_dicts())


def compared(mesh: Mesh, findings: list[dict[str, Any]]) -> dict[str, list[str]]:
    ids = [finding["finding_id"] for finding in findings]
    assert len(ids) == len(set(ids)), "two findings are known by one id: who watches would see one of them only"
    planted = [incident for incident in mesh.incidents if incident.subject[1] != "nobody"]
    return {
        "missing": [f"{i.kind} {i.subject}" for i in planted if not any(explains(i, f) for f in findings)],
        "unexpected": [f["explanation"] for f in findings if not any(explains(i, f) for i in planted)],
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds())
def test_a_quiet_mesh_has_no_findings(seed: int) -> None:
    assert disagreement(simulate(seed, kinds=())) == {"missing": [], "unexpected": []}


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds())
def test_four_incidents_are_four_findings(seed: int) -> None:
    assert disagreement(simulate(seed)) == {"missing": [], "unexpected": []}


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds()[:2])
@pytest.mark.parametrize("kinds", [(), ("bypass",)], ids=["quiet", "bypass"])
def test_sockets_alone_prove_a_bypass_and_accuse_nobody(seed: int, kinds: tuple[Any, ...]) -> None:
    mesh = simulate(seed, kinds=kinds)
    query = store([s for s in mesh.spans if s["witness"] != "proxy"], sockets=mesh.sockets, optimized=True)
    assert compared(mesh, scan(query, kinds=("shadow",)).to_dicts()) == {"missing": [], "unexpected": []}
    calls = call_verdicts(query, Window())
    known = calls.filter(pl.col("caller").is_not_null())
    assert set(known["inbound_verdict"]) <= {"seen", "missed"}
    assert set(known["verdict"]) <= {"unknown", "bypassed"}  # on the callers' side nobody looked

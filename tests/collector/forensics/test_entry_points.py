"""Entry points take unstamped calls, and plaintext from outside, by nature: asked only where it decides something, and then everywhere."""

from collections.abc import Iterable

import polars as pl
import pytest

from collector.forensics.call_list import call_verdicts
from collector.forensics.shadow import examine_shadow
from collector.forensics.shadow_flags import ShadowParams
from collector.forensics.tables import Window
from tests.collector.forensics.factories import (
    MS,
    T0,
    Query,
    Row,
    S,
    make_flow,
    make_proxy_record,
    make_span,
    make_workload,
    next_id,
    store,
)

pytestmark = pytest.mark.slow

IDENTITY = "spiffe://mesh/ns/shop/sa/batch"


def into_gateway(at: int, caller: str | None, *, looks: bool, peer: str | None = None) -> tuple[list[Row], list[Row]]:
    """A call to the gateway that its proxy took, as it logged it: (spans, lines)."""
    trace, client, server = next_id(), next_id(), next_id()
    common = {"trace_id": trace, "provenance_request_id": f"request-{trace}", "url_path": "/", "duration_ns": 10 * MS}
    stamps = {"provenance_stamp_status": "absent"} if looks else {}
    spans = [make_span(service_name="gateway", span_id=server, start_time_unix_nano=T0 + at, **common, **stamps)]
    if caller is not None:
        spans[0]["parent_span_id"] = client
        spans.append(
            make_span(kind="CLIENT", service_name=caller, span_id=client, start_time_unix_nano=T0 + at, **common)
        )
    line = {"service_name": "gateway", "request_id": f"request-{trace}", "downstream_peer": peer}
    return spans, [make_proxy_record(start_time_unix_nano=T0 + at, **line)]


def gateway(*, looks: bool, batch: bool = True, flows: Iterable[Row] = (), workloads: Iterable[Row] = ()) -> Query:
    """Ten minutes of calls from nobody in plaintext, and two of `batch`: with an identity and in plaintext."""
    calls = [into_gateway(at * S, None, looks=looks) for at in range(0, 600, 10)]
    if batch:
        calls.append(into_gateway(301 * S, "batch", looks=looks, peer=IDENTITY))
        calls.append(into_gateway(305 * S, "batch", looks=looks))
    return store(
        [s for spans, _ in calls for s in spans],
        [r for _, lines in calls for r in lines],
        flows=flows,
        workloads=workloads,
    )


@pytest.mark.parametrize("looks", [True, False])
def test_plaintext_into_an_entry_point_is_no_bypass_in_the_list_nor_in_a_finding(*, looks: bool) -> None:
    query = gateway(looks=looks)
    for params, verdicts in (
        (ShadowParams(), {"unknown", "meshed"}),
        (ShadowParams(infer_entries=False), {"bypassed", "unknown", "meshed"}),
    ):
        listed = call_verdicts(query, Window(), params=params)
        bypassed = listed.filter(pl.col("verdict") == "bypassed")
        found = [f for f in examine_shadow(query, Window(), params).findings if "mesh_bypass" in f.reasons]
        assert set(listed["verdict"]) == verdicts
        assert bypassed["caller"].to_list() == [f.caller for f in found] == ["batch"] * ("bypassed" in verdicts)


def test_flows_into_an_entry_point_come_from_anywhere_though_no_call_asks_for_it() -> None:
    workloads = [make_workload(address="10.0.0.2", service_name="gateway")]
    flows = [make_flow(source_address="198.51.100.7", mesh_tls=tls, record_id=next_id()) for tls in (False, True)]
    query = gateway(looks=False, batch=False, flows=flows, workloads=workloads)
    assert [f.callee for f in examine_shadow(query, Window()).findings] == []
    found = examine_shadow(query, Window(), ShadowParams(infer_entries=False)).findings[-1]
    assert (found.callee, found.reasons) == ("gateway", ("mesh_bypass",))

"""What an access-log line says of a call beyond that it is there: that it was passed on blindly, in plaintext, or of another peer."""

from typing import Final

import ibis.expr.types as ir

PASSTHROUGH: Final = "PassthroughCluster"
"""Istio's name for where a sidecar sends what it has no route for: as it came, without mTLS and policy."""

_MESH_SNI: Final = "outbound_."
_SPIFFE: Final = "spiffe://"


def with_line_facts(table: ir.Table, logged: ir.Table) -> ir.Table:
    """The calls with what their lines say beyond that they are there: passed_through, plaintext, authenticated, misnamed."""
    passed = logged.filter((logged.direction == "outbound") & (logged.upstream_cluster == PASSTHROUGH))
    passed = passed.select(passed_id=passed.record_id).distinct()
    inbound = logged.filter(logged.direction == "inbound")
    named = inbound.downstream_peer.notnull() | inbound.requested_server_name.startswith(_MESH_SNI).fill_null(False)
    named_lines = inbound.filter(named)
    secure = named_lines.select(secure_service="service", secure_source="source").distinct()
    known = named_lines.select(known_id="record_id").distinct()
    bare = inbound.filter(inbound.downstream_peer.isnull() & inbound.requested_server_name.isnull())
    bare = bare.inner_join(secure, [bare.service == secure.secure_service, bare.source == secure.secure_source]).select(
        bare_id="record_id"
    )
    table = table.left_join(passed, table.outbound_record_id == passed.passed_id)
    table = table.left_join(bare, table.inbound_record_id == bare.bare_id)
    table = table.left_join(known, table.inbound_record_id == known.known_id)
    table = table.mutate(
        passed_through=table.passed_id.notnull(),
        plaintext=table.bare_id.notnull(),
        authenticated=table.known_id.notnull(),
    )
    other = _misnamed(table, inbound)
    table = table.left_join(
        other, [table.trace_id == other.other_trace_id, table.server_span_id == other.other_span_id]
    )
    return table.mutate(misnamed=table.other_span_id.notnull()).drop(
        "passed_id", "bare_id", "known_id", "other_trace_id", "other_span_id"
    )


def _misnamed(table: ir.Table, inbound: ir.Table) -> ir.Table:
    """(other_trace_id, other_span_id): calls whose callee was told of a peer that its own proxy did not log."""
    told = table.filter(table.principal.notnull() & table.inbound_record_id.notnull())
    told = told.select("trace_id", "server_span_id", "principal", "plaintext", record_id=told.inbound_record_id)
    peers = inbound.select(peer_id=inbound.record_id, peer=inbound.downstream_peer)
    joined = told.inner_join(peers, told.record_id == peers.peer_id)
    # The same identity is written in two ways where a Linkerd name stands beside a SPIFFE id: no contradiction.
    alike = joined.peer.startswith(_SPIFFE) == joined.principal.startswith(_SPIFFE)
    contradicted = (alike & (joined.peer != joined.principal)).fill_null(False) | joined.plaintext
    joined = joined.filter(contradicted)
    return joined.select(other_trace_id=joined.trace_id, other_span_id=joined.server_span_id).distinct()

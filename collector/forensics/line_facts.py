"""What an access-log line says of a call beyond that it is there: that it was passed on blindly, in plaintext, or of another peer."""

from typing import Final

import ibis
import ibis.expr.types as ir

PASSTHROUGH: Final = "PassthroughCluster"
"""Istio's name for where a sidecar sends what it has no route for: as it came, without mTLS and policy."""

FACTS_OF_SIDE: Final = {"outbound": ("passed",), "inbound": ("named", "nameless_source", "peer")}
"""Of which side's line each column of `facts_of` is asked."""

LINE_FACTS: Final = tuple(name for names in FACTS_OF_SIDE.values() for name in names)

_MESH_SNI: Final = "outbound_."
_SPIFFE: Final = "spiffe://"


def facts_of(records: ir.Table) -> dict[str, ir.Value]:
    """What lines say, by column.

    passed: on to where the proxy has no route. Of inbound lines alone: named: the peer showed an identity, or came by a name of the
    mesh; nameless_source: the file of a line without either, else NULL; peer: the identity.
    """
    inbound = (records.direction == "inbound").fill_null(False)
    peer, name = records.downstream_peer, records.requested_server_name
    nothing = ibis.null("string")
    return {
        "passed": ((records.direction == "outbound") & (records.upstream_cluster == PASSTHROUGH)).fill_null(False),
        "named": inbound & (peer.notnull() | name.startswith(_MESH_SNI).fill_null(False)),
        "nameless_source": ibis.ifelse(inbound & peer.isnull() & name.isnull(), records.source, nothing),
        "peer": ibis.ifelse(inbound, peer, nothing),
    }


def with_line_facts(table: ir.Table, logs: ir.Table) -> ir.Table:
    """The calls with what their lines say beyond that they are there: passed_through, plaintext, authenticated, misnamed.

    `logs` has service, source and `named` of the access logs' files: only a proxy that logs identities at all says something
    by a line without one.
    """
    secure = logs.filter(logs.named).select(secure_service="service", secure_source="source").distinct()
    table = table.left_join(
        secure, [table.callee == secure.secure_service, table.inbound_nameless_source == secure.secure_source]
    )
    table = table.mutate(
        passed_through=table.outbound_passed.fill_null(False),
        plaintext=table.secure_source.notnull(),
        authenticated=table.inbound_named.fill_null(False),
    )
    # The same identity is written in two ways where a Linkerd name stands beside a SPIFFE id: no contradiction.
    alike = table.inbound_peer.startswith(_SPIFFE) == table.principal.startswith(_SPIFFE)
    contradicted = (alike & (table.inbound_peer != table.principal)).fill_null(False) | table.plaintext
    return table.mutate(misnamed=table.principal.notnull() & contradicted).drop("secure_service", "secure_source")

"""Which destinations outside the mesh a workload may reach: read as they are from TOML, Istio, Linkerd and Kubernetes, and asked of one call.

listed.py          our own TOML, and the rows of `egress_allow` that a collector keeps of it
documents.py       YAML and JSON as in Git or as kubectl prints it -> documents, with the place of every field for errors
calls.py           what is asked: a call; what is answered: a verdict
istio.py linkerd.py networkpolicy.py   one kind of policy each: documents in, verdicts out
policies.py        all of them together
suggest.py         the least policy that allows what was seen
"""

from collector.policy.listed import (
    NOWHERE,
    EgressPolicy,
    EgressRule,
    parse_destination,
    parse_policy,
    read_policy,
    to_batch,
)

__all__ = [
    "NOWHERE",
    "EgressPolicy",
    "EgressRule",
    "parse_destination",
    "parse_policy",
    "read_policy",
    "to_batch",
]

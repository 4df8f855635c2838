"""Whose an authenticated principal is: does the mesh's word on a call's peer contradict the name in its stamp?

Three ways to know, and otherwise it is unknown, which accuses nobody:

- A file says so. `[services]` of the file that `provenance verify --principals` names:

      intermediaries = ["spiffe://cluster.local/ns/mesh/sa/gateway"]      # they hand on the calls of others

      [services]
      checkout = ["spiffe://cluster.local/ns/shop/sa/checkout", "spiffe://cluster.local/ns/shop/sa/jobs"]

- The principal names the service: `spiffe://.../sa/checkout`, or Linkerd's `checkout.NAMESPACE.serviceaccount.identity...`.
- It is learned: both the service in the stamp and the one that the principal names make calls under principals of their own names.
  Two facts that only the mesh can make, so nobody plants them; a gateway, which makes no calls of its own, is never accused by them.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from collector.errors import ConfigError

_SPIFFE: Final = re.compile(r"spiffe://[^/]+/(?:.+/)?sa/([^/]+)")
_LINKERD: Final = re.compile(r"([^.]+)\.[^.]+\.serviceaccount\.identity\..+")
_FORM: Final = 'expected intermediaries = ["spiffe://..."] and [services] with NAME = ["spiffe://..."]'


def named_by(principal: str) -> str | None:
    """The service account in a SPIFFE id, or in a Linkerd identity; None where there is none."""
    match = _SPIFFE.fullmatch(principal) or _LINKERD.fullmatch(principal)
    return None if match is None else match[1]


@dataclass(frozen=True, slots=True)
class Principals:
    """What is known of principals.

    Attributes:
        of_service: The principals of each service that the file names.
        intermediaries: Principals of which a call's maker cannot be told.
        own_names: Services that were seen under a principal of their own name.
    """

    of_service: Mapping[str, frozenset[str]] = field(default_factory=dict)
    intermediaries: frozenset[str] = frozenset()
    own_names: frozenset[str] = frozenset()

    def learn(self, pairs: Iterable[tuple[str, str]]) -> "Principals":
        """The same, and what follows from pairs of a stamp's service and the principal that brought it."""
        own = frozenset(service for service, principal in pairs if named_by(principal) == service)
        return Principals(self.of_service, self.intermediaries, self.own_names | own)

    def contradiction(self, service: str, principal: str | None) -> str | None:
        """Why this principal is not this service; None where it is, or nobody can tell."""
        if principal is None or principal in self.intermediaries:
            return None
        if (listed := self.of_service.get(service)) is not None:
            return None if principal in listed else f"the mesh authenticated {principal}, which is none of {service}'s"
        others = sorted(each for each, principals in self.of_service.items() if principal in principals)
        if others:
            return f"the mesh authenticated {principal}, which is {others[0]}'s"
        named = named_by(principal)
        if named is None or named == service or not {named, service} <= self.own_names:
            return None
        return f"the mesh authenticated {principal}, and both {named} and {service} call under names of their own"


def parse_principals(text: str) -> Principals:
    """Read the file; raises ConfigError with what is wrong, and the form that is expected."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"not TOML: {e}; {_FORM}") from e
    services = document.pop("services", {})
    intermediaries = document.pop("intermediaries", [])
    if document:
        raise ConfigError(f"unknown key {next(iter(document))!r}; {_FORM}")
    if not isinstance(services, dict):
        raise ConfigError(f"services: {_FORM}")
    of_service = {name: _texts(f"services.{name}", value) for name, value in services.items()}
    return Principals(of_service, _texts("intermediaries", intermediaries))


def _texts(name: str, value: Any) -> frozenset[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) and each for each in values):
        raise ConfigError(f"{name}: {_FORM}")
    return frozenset(values)

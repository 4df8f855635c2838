"""Which destinations outside the mesh a service may reach: `[egress]` of provenance.toml, and the question it answers.

    [egress]
    allow = [
      "api.stripe.com:443",                                       # a host, one port
      "*.amazonaws.com",                                          # every name below it, every port
      "10.1.0.0/16",                                              # a block, or one address
      "[2001:db8::1]:8443",                                       # IPv6 with a port needs brackets
      {service = "payment", destination = "127.0.0.7:9000"},      # for one service alone
    ]
    internal = ["172.30.0.0/16", "*.corp.example"]                # what is no egress at all: blocks, addresses, names, *.suffixes

`allow = []` is a list too: nothing may leave. Without `allow` there is no list, and nothing can be judged by it.

Parsing is pure; `read_policy` is the file read. The detector asks `EgressPolicy`, built from the rows of `egress_allow`.
"""

import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from collector.errors import ConfigError
from collector.schema import arrow_schema

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


NOWHERE: Final = ""
"""The destination in the one row of `egress_allow` that stands for an empty list; it matches nothing."""


@dataclass(frozen=True, slots=True)
class EgressRule:
    """One thing that is allowed.

    Attributes:
        service_name: The workload that may; None: every workload.
        destination: Lowercase host name, `*.suffix`, address or CIDR block in its shortest form.
        port: None: every port.
    """

    service_name: str | None
    destination: str
    port: int | None

    def __str__(self) -> str:
        written = (
            f"[{self.destination}]" if ":" in self.destination and "/" not in self.destination else self.destination
        )
        where = written if self.port is None else f"{written}:{self.port}"
        return where if self.service_name is None else f"{where} for {self.service_name}"


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What is allowed, all of it. Without rules nothing is allowed; `is_given` tells whether anybody said so.

    `internal` are destinations that are no egress, whoever reaches them, in the form of `EgressRule.destination`.
    """

    rules: tuple[EgressRule, ...] = ()
    is_given: bool = True
    internal: tuple[str, ...] = ()

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]]) -> "EgressPolicy":
        """From the rows of `egress_allow`: `service_name`, `destination`, `port`; raises ConfigError. No rows: no list is given."""
        listed = list(rows)
        rules = (_rule_from_row(row) for row in listed if row.get("destination") != NOWHERE)
        return cls(tuple(rules), is_given=bool(listed))

    def allows(self, service: str, host: str, port: int | None) -> bool:
        """Whether this service may reach this destination: whether a rule says so."""
        return self.rule_for(service, host, port) is not None

    def rule_for(self, service: str, host: str, port: int | None) -> EgressRule | None:
        """The first rule by which this service may reach this destination; None: there is none.

        `host` is a name or an address. A call whose port is not known is allowed only by a rule for every port. An
        address matches blocks and addresses, a name matches names: nothing is resolved.
        """
        host = normal_host(host)
        address = address_of(host)
        return next(
            (
                rule
                for rule in self.rules
                if rule.service_name in {None, service}
                and rule.port in {None, port}
                and matches(rule.destination, host, address)
            ),
            None,
        )


def read_policy(path: Path) -> EgressPolicy:
    """The policy in a file; raises ConfigError naming the file and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: the policy cannot be read: {reason}") from e
    return parse_policy(text, name=str(path))


def parse_policy(text: str, *, name: str) -> EgressPolicy:
    """The policy in a TOML text; raises ConfigError, whose message begins with `name`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{name}: not TOML: {e}") from e
    _only(document, {"egress", "collector"}, name, "")  # a collector's settings may stand in the same file
    egress = document.get("egress", {})
    if not isinstance(egress, dict):
        raise ConfigError(f"{name}: egress: expected a table [egress], got {_kind(egress)}")
    _only(egress, {"allow", "internal"}, name, "egress.")
    rules = tuple(_entry(entry, f"{name}: egress.allow[{i}]") for i, entry in enumerate(_list(egress, "allow", name)))
    inside = _list(egress, "internal", name)
    internal = tuple(parse_internal(entry, f"{name}: egress.internal[{i}]") for i, entry in enumerate(inside))
    return EgressPolicy(rules, is_given="allow" in egress, internal=internal)


def to_batch(policy: EgressPolicy) -> pa.RecordBatch:
    """The rules as a record batch for `egress_allow`; a list without rules is one row whose destination is `NOWHERE`."""
    rows = [{"service_name": r.service_name, "destination": r.destination, "port": r.port} for r in policy.rules]
    if policy.is_given and not rows:
        rows = [{"service_name": None, "destination": NOWHERE, "port": None}]
    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema("egress_allow"))


def parse_destination(text: str, where: str) -> tuple[str, int | None]:
    """(destination, port) of `host`, `host:port`, `*.suffix`, an address, a CIDR block or `[IPv6]:port`; raises ConfigError."""
    host, port = _split_port(text.strip(), where)
    return _destination(host, where), port


def parse_internal(entry: object, where: str) -> str:
    """A host name, `*.suffix`, address or CIDR block that is no egress, in its shortest form; raises ConfigError."""
    if not isinstance(entry, str):
        raise ConfigError(f'{where}: expected a text like "10.0.0.0/8" or "*.corp.example", got {_kind(entry)}')
    return _destination(entry, where)


def _list(egress: Mapping[str, object], key: str, name: str) -> list[object]:
    entries = egress.get(key, [])
    if not isinstance(entries, list):
        raise ConfigError(f"{name}: egress.{key}: expected a list, got {_kind(entries)}")
    return entries


def _entry(entry: object, where: str) -> EgressRule:
    match entry:
        case str():
            destination, port = parse_destination(entry, where)
            return EgressRule(None, destination, port)
        case dict():
            _only(entry, {"service", "destination"}, where, "")
            service, text = entry.get("service"), entry.get("destination")
            if not isinstance(service, str) or not service:
                raise ConfigError(f"{where}: service: expected a service's name, got {_kind(service)}")
            if not isinstance(text, str):
                raise ConfigError(f'{where}: destination: expected a text like "10.0.0.7:9000", got {_kind(text)}')
            destination, port = parse_destination(text, where)
            return EgressRule(service, destination, port)
        case _:
            raise ConfigError(
                f'{where}: expected a text like "api.stripe.com:443" or {{service = "...", destination = "..."}}, '
                f"got {_kind(entry)}"
            )


def _rule_from_row(row: Mapping[str, object]) -> EgressRule:
    service, destination, port = row.get("service_name"), row.get("destination"), row.get("port")
    if (
        not isinstance(service, str | None)
        or not isinstance(destination, str)
        or not isinstance(port, int | None)
        or isinstance(port, bool)
    ):
        raise ConfigError(
            f"egress_allow: not a rule: service_name {service!r}, destination {destination!r}, port {port!r}"
        )
    return EgressRule(service, _destination(destination, "egress_allow"), port)


def _split_port(text: str, where: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or address_of(host) is None:
            raise ConfigError(f"{where}: {text!r}: expected [IPv6 address]:port")
        return host, _port(rest[1:], text, where) if rest else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, _port(port, text, where)
    return text, None  # a name, an address, a block, or an IPv6 address, whose colons are its own


def _port(digits: str, text: str, where: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ConfigError(f"{where}: {text!r}: expected a port from 1 to 65535 after the colon, got {digits!r}")
    return int(digits)


def _destination(host: str, where: str) -> str:
    host = normal_host(host)
    if (address := address_of(host)) is not None:
        return str(address)
    if "/" in host:
        try:
            return str(ipaddress.ip_network(host))
        except ValueError as e:
            raise ConfigError(f"{where}: {host!r} is no block of addresses: {e}") from e
    if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
        raise ConfigError(f"{where}: {host!r} is neither a host name, nor *.suffix, nor an address, nor a CIDR block")
    return host


def normal_host(host: str) -> str:
    """Lowercase, without the brackets of an IPv6 address and the root's dot."""
    return host.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")


def address_of(host: str) -> Address | None:
    """The address; an IPv4 address that IPv6 sockets show as ::ffff:a.b.c.d is the IPv4 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def matches(destination: str, host: str, address: Address | None) -> bool:
    """Whether a destination of a list covers this host, which is `address` where it is one: an address only blocks, a name only names."""
    if address is not None:
        return network_contains(destination, address)
    if destination.startswith("*."):
        return host.endswith(destination[1:])
    return host == destination


def network_contains(destination: str, address: Address) -> bool:
    """Whether this block, or single address, holds the address; False where it is a name."""
    try:
        network: Network = ipaddress.ip_network(destination)
    except ValueError:  # a name: it matches no address
        return False
    return address in network


def _only(table: Mapping[str, object], known: set[str], name: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{name}: unknown key {prefix}{key}; there is {', '.join(sorted(prefix + k for k in known))}"
            )


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"

"""The egress guard: calls to destinations that are on no list are reported, or refused. Off unless a list is configured.

    PROVENANCE_EGRESS_ALLOW   a file (TOML with `[egress] allow = [...]`, or one destination a line), or a list with commas
    PROVENANCE_EGRESS         observe (the default where a list is configured), enforce, off

A destination is `host`, `host:port`, `*.suffix`, an address, a CIDR block or `[IPv6]:port`. What does not leave is not asked about:
loopback and private addresses, names without a dot, and those of a cluster; a cloud's metadata service is asked about.

Observed, a call goes on untouched: it is counted, its span says `provenance.egress.status = unlisted`, and it is logged once a minute
a destination at most. Enforced, it fails as if nobody listened there, with the client library's own connection error.

The guard judges names as they are dialled, in this process, where its libraries are instrumented: code that means to get around it can.
It is a seat belt against mistakes and their first consequences, and no replacement for a policy of the network.
"""

import ipaddress
import logging
import os
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace

from provenance import names
from provenance.enforcement import ModeError
from provenance.faults import Contained, report
from provenance.forks import Lock
from provenance.spans import current_service

PLACE: Final = "egress"
MODE: Final = "PROVENANCE_EGRESS"
ALLOW: Final = "PROVENANCE_EGRESS_ALLOW"
MODES: Final = ("observe", "enforce", "off")

MAX_REMEMBERED: Final = 4096
"""Destinations whose verdict, and whose last log line, is remembered; the oldest are forgotten first."""

LOG_INTERVAL_SECONDS: Final = 60.0

METADATA: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "metadata.google.internal", "100.100.100.200"})
_CLUSTER: Final = (".svc", ".cluster.local", ".localhost")
_HOST: Final = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_CGNAT: Final = ipaddress.ip_network("100.64.0.0/10")
_PRIVATE: Final = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_log = logging.getLogger("provenance")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is allowed: a name, `*.suffix` or block; at one port or all; for one service or all."""

    destination: str | Network
    port: int | None = None
    service: str | None = None

    def covers(self, host: str, address: Address | None, port: int | None, service: str) -> bool:
        """Whether it allows this service this destination."""
        if self.port not in {None, port} or self.service not in {None, service}:
            return False
        if not isinstance(self.destination, str):
            return address is not None and address in self.destination
        if self.destination.startswith("*."):
            return address is None and host.endswith(self.destination[1:])
        return address is None and host == self.destination


@dataclass(slots=True)
class EgressGuard:
    """What may be reached, and whether anything else is refused."""

    entries: tuple[Entry, ...]
    enforces: bool = False
    unlisted: Counter[str] = field(default_factory=Counter)
    _known: OrderedDict[tuple[str, int | None], bool] = field(default_factory=OrderedDict)
    _logged: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def allows(self, host: str, port: int | None) -> bool:
        """Whether a call there goes on: it does not leave, or the list has it."""
        key = (host, port)
        known = self._known.get(key)
        if known is None:
            known = self._decide(host, port)
            with self._lock:
                while len(self._known) >= MAX_REMEMBERED:
                    self._known.popitem(last=False)
                self._known[key] = known
        return known

    def _decide(self, host: str, port: int | None) -> bool:
        host = host.strip().lower().strip("[]").removesuffix(".")
        address = _address(host)
        if not _leaves(host, address):
            return True
        service = current_service(None)
        return any(entry.covers(host, address, port, service) for entry in self.entries)

    def tell(self, host: str, port: int | None) -> None:
        """Count and, seldom, log an unlisted call, and say it on the span that is current."""
        where = host if port is None else f"{host}:{port}"
        now = time.monotonic()
        with self._lock:
            if where in self.unlisted or len(self.unlisted) < MAX_REMEMBERED:
                self.unlisted[where] += 1
            count, last = self.unlisted[where], self._logged.get(where)
            speaks = last is None or now - last >= LOG_INTERVAL_SECONDS
            if speaks:
                while len(self._logged) >= MAX_REMEMBERED:
                    self._logged.popitem(last=False)
                self._logged[where] = now
        if speaks:
            done = "refused" if self.enforces else "observed"
            _log.warning("provenance: egress to %s is on no list: %s (%d so far)", where, done, count)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute(names.EGRESS_STATUS, "refused" if self.enforces else "unlisted")


_guard: EgressGuard | None = None


def guard_egress(guard: EgressGuard | None) -> None:
    """Judge outgoing calls by this guard from now on; None: by none."""
    global _guard  # noqa: PLW0603  (one process, one guard)
    _guard = guard


def current_egress_guard() -> EgressGuard | None:
    """The guard of this process; None where nothing is configured."""
    return _guard


def check(host: object, port: object, refuse: Callable[[str], BaseException], *, tells: bool = True) -> None:
    """Let a call pass, or raise what `refuse` makes of the reason. `tells`: in observe mode, report it here.

    In observe mode nothing is ever raised, whatever fails.
    """
    guard = _guard
    if guard is None or not host:
        return
    if not guard.enforces:
        with Contained(PLACE):
            if tells and not guard.allows(*_where(host, port)):
                guard.tell(*_where(host, port))
        return
    where = _where(host, port)
    if not guard.allows(*where):
        guard.tell(*where)
        raise refuse(f"egress to {host}:{port} is refused: {ALLOW} does not list it")


def check_address(address: Mapping[str, Any], refuse: Callable[[str], BaseException]) -> None:
    """The same for `server.address` and `server.port`; a Unix socket's path, and what is not known, passes."""
    if _guard is not None and names.SERVER_PORT in address:
        check(address.get(names.SERVER_ADDRESS), address[names.SERVER_PORT], refuse)


def _where(host: object, port: object) -> tuple[str, int | None]:
    text = host.decode("latin-1") if isinstance(host, bytes) else str(host)
    return text, port if isinstance(port, int) else None


def _leaves(host: str, address: Address | None) -> bool:
    """Whether a destination is outside by what it is called."""
    if host in METADATA:
        return True
    if address is None:
        return "." in host and not host.endswith(_CLUSTER)
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        return False
    return not any(address.version == n.version and address in n for n in (*_PRIVATE, _CGNAT))


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def guard_of(environ: Mapping[str, str]) -> EgressGuard | None:
    """The guard that the environment asks for.

    Raises:
        ModeError: No such mode, a list that cannot be read or an entry that is none, or enforce without a list.
    """
    allow = environ.get(ALLOW, "").strip()
    mode = environ.get(MODE, "").strip().lower() or ("observe" if allow else "off")
    if mode not in MODES:
        message = f"{MODE}={mode!r}: expected {', '.join(MODES)}"
        raise ModeError(message)
    if mode == "off":
        return None
    if not allow:
        message = f"{MODE}={mode}: {ALLOW} has to say what may be reached: a file, or a list with commas"
        raise ModeError(message)
    return EgressGuard(tuple(read_list(allow)), enforces=mode == "enforce")


def guard_as_the_environment_says() -> None:
    """Guard if the environment says so, unless the program did; what cannot be used ends the start of a service only in enforce mode."""
    if _guard is not None:
        return
    try:
        guard_egress(guard_of(os.environ))
    except ModeError as error:
        if os.environ.get(MODE, "").strip().lower() == "enforce":
            raise
        report(PLACE, error)


def read_list(allow: str) -> list[Entry]:
    """The entries of a file, or of a text with commas. Raises ModeError."""
    import tomllib  # few services have a list

    path = Path(allow)
    if "," in allow or not (path.suffix or os.sep in allow) or not _is_file(path, allow):
        return [parse_entry(text, ALLOW) for text in _parts(allow.split(","))]
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".toml":
            lines = (line.partition("#")[0] for line in text.splitlines())
            return [parse_entry(line, allow) for line in _parts(lines)]
        listed = tomllib.loads(text).get("egress", {}).get("allow")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        message = f"{ALLOW}: {path}: cannot be read: {error}"
        raise ModeError(message) from error
    if not isinstance(listed, list):
        message = f"{ALLOW}: {path}: expected a list [egress] allow"
        raise ModeError(message)
    return [parse_entry(entry, f"{path}: egress.allow[{i}]") for i, entry in enumerate(listed)]


def _is_file(path: Path, allow: str) -> bool:
    """Whether a file is meant: one that is there, or that only a file can be called."""
    return path.is_file() or allow.startswith(("/", "./", "../")) or path.suffix in {".toml", ".txt"}


def _parts(texts: Iterable[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def parse_entry(entry: object, where: str) -> Entry:
    """One entry: a text, or a table with `service` and `destination`. Raises ModeError."""
    service = None
    if isinstance(entry, dict):
        service, entry = entry.get("service"), entry.get("destination")
    if not isinstance(entry, str) or not isinstance(service, str | None):
        message = f'{where}: expected a destination like "api.stripe.com:443", got {entry!r}'
        raise ModeError(message)
    text = entry.strip().lower()
    host, port = _split(text)
    destination: str | Network = host.removesuffix(".")
    try:
        destination = ipaddress.ip_network(host)
    except ValueError:
        if "/" in host or not _HOST.fullmatch(host) or re.fullmatch("[0-9.]+", host):
            message = f"{where}: {entry!r} is neither a host name, nor *.suffix, nor an address, nor a CIDR block"
            raise ModeError(message) from None
    if port is not None and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        message = f"{where}: {entry!r}: expected a port from 1 to 65535 after the colon"
        raise ModeError(message)
    return Entry(destination, None if port is None else int(port), service)


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest[1:] if rest.startswith(":") else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None

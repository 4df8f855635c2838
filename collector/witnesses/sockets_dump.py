"""The thin shell of the socket witness: asks the kernel for this network namespace's sockets. Needs no privilege.

netlink first: it tells owners' control groups and each socket's own number, and leaves out what was not asked for. Where a seccomp
profile or a kernel without `inet_diag` refuses, /proc/net serves, which tells neither.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from collector.witnesses.sockets import (
    EVERY_STATE,
    TIME_WAIT_BIT,
    DumpError,
    Socket,
    Transport,
    address_request,
    decode_address,
    decode_diag,
    decode_proc,
    diag_request,
    raw_key,
    split_messages,
)

_NETLINK_SOCK_DIAG: Final = 4
_RECEIVE_BYTES: Final = 256 * 1024
"""A dump's datagram holds up to 32 KiB."""

_TIMEOUT_S: Final = 5.0
_UNSUPPORTED: Final = frozenset({errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL})
"""The kernel has no dump of that family or protocol: there are no such sockets, or only /proc tells."""

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
PROTOCOLS: Final[tuple[Transport, ...]] = ("tcp", "udp")


class NetlinkTable:
    """Socket tables by sock_diag. Raises DumpError where the kernel does not allow it."""

    name = "sock_diag"

    def __init__(self) -> None:
        self._socket = _netlink(_NETLINK_SOCK_DIAG)
        self._known: set[bytes] = set()

    def live(self) -> list[Socket]:
        """Every socket but those in TIME_WAIT; connected and bound UDP sockets too."""
        states = EVERY_STATE & ~TIME_WAIT_BIT
        return [s for protocol in PROTOCOLS for family in FAMILIES for s in self._dump(family, protocol, states, None)]

    def time_wait(self) -> list[Socket]:
        """The TCP sockets in TIME_WAIT that the last call did not have: of ten thousand, most stay for a minute."""
        seen: set[bytes] = set()
        sockets = [s for family in FAMILIES for s in self._dump(family, "tcp", TIME_WAIT_BIT, seen)]
        self._known = seen
        return sockets

    def close(self) -> None:
        """Give the netlink socket back."""
        self._socket.close()

    def _dump(self, family: int, protocol: Transport, states: int, seen: set[bytes] | None) -> Iterator[Socket]:
        try:
            for message in _messages(self._socket, diag_request(family, protocol, states)):
                if seen is not None:
                    key = raw_key(message)
                    seen.add(key)
                    if key in self._known:
                        continue
                yield decode_diag(message, protocol)
        except DumpError as e:
            if e.errno not in _UNSUPPORTED:
                raise


class ProcTable:
    """Socket tables by /proc/net: the fallback."""

    name = "/proc/net"

    def __init__(self, directory: Path = Path("/proc/self/net")) -> None:
        self._directory = directory

    def live(self) -> list[Socket]:
        """Every socket but those in TIME_WAIT."""
        return [s for s in self._read("tcp", "tcp6", "udp", "udp6") if s.state != "TIME_WAIT"]

    def time_wait(self) -> list[Socket]:
        """The sockets in TIME_WAIT, all of them each time."""
        return [s for s in self._read("tcp", "tcp6") if s.state == "TIME_WAIT"]

    def close(self) -> None:
        """Nothing is held."""

    def _read(self, *names: str) -> Iterator[Socket]:
        for name in names:
            protocol: Transport = "udp" if name.startswith("udp") else "tcp"
            with suppress(FileNotFoundError):  # a kernel without IPv6
                yield from decode_proc((self._directory / name).read_text("ascii"), protocol)


Table = NetlinkTable | ProcTable


def open_table() -> Table:
    """The best table that this process may read; raises DumpError where there is none at all."""
    table = None
    with suppress(DumpError, OSError):
        table = NetlinkTable()
        table.live()
        return table
    if table is not None:
        table.close()
    fallback = ProcTable()
    try:
        fallback.live()
    except OSError as e:
        raise DumpError(
            f"neither netlink nor {e.filename} can be read here: {e.strerror}; the witness needs Linux"
        ) from e
    return fallback


def own_addresses() -> frozenset[str]:
    """This namespace's addresses, loopback's among them; raises DumpError."""
    with _netlink(socket.NETLINK_ROUTE) as route:
        return frozenset(a for m in _messages(route, address_request()) if (a := decode_address(m)) is not None)


def port_range(path: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> tuple[int, int]:
    """The ports from which the kernel draws those of outgoing connections."""
    try:
        first, last = path.read_text("ascii").split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 32768, 60999  # Linux's default


_STALLS: Final = ("ListenOverflows", "ListenDrops", "SyncookiesSent")


def stalls(read: Callable[[], str] = lambda: Path("/proc/self/net/netstat").read_text("ascii")) -> int:
    """How many connections a listener of this namespace kept waiting or dropped so far.

    Such a connection looks established to who made it while nobody has its other end: no time to conclude anything from that.
    """
    try:
        return sum_of(read(), _STALLS)
    except OSError:
        return 0


def sum_of(netstat: str, names: Iterable[str]) -> int:
    """The sum of some counters of /proc/net/netstat, whose lines come in pairs: names, values."""
    lines = [line.split() for line in netstat.splitlines()]
    counters: dict[str, int] = {}
    for keys, values in zip(lines[::2], lines[1::2], strict=False):
        counters |= {k: int(v) for k, v in zip(keys[1:], values[1:], strict=False) if v.lstrip("-").isdecimal()}
    return sum(counters.get(name, 0) for name in names)


def _netlink(protocol: int) -> socket.socket:
    if not hasattr(socket, "AF_NETLINK"):
        raise DumpError(f"{os.uname().sysname} has no netlink: the witness needs Linux")
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol)
    opened.settimeout(_TIMEOUT_S)
    return opened


def _messages(netlink: socket.socket, request: bytes) -> list[bytes]:
    """The whole answer before anything of it is decoded: what is left unread would be taken for the next one's."""
    messages: list[bytes] = []
    try:
        netlink.sendto(request, (0, 0))
        while True:
            for message in split_messages(netlink.recv(_RECEIVE_BYTES)):
                if message is None:
                    return messages
                messages.append(message)
    except OSError as e:
        raise DumpError(f"the netlink dump failed: {e.strerror or e}", e.errno or 0) from e

"""Socket tables as Linux tells them, decoded: netlink's `sock_diag` and, where that is not allowed, /proc/net/{tcp,udp}{,6}. Pure.

    diag_request(family, protocol, states) -> bytes     what to send: an INET_DIAG_REQ_V2 dump
    split_messages(datagram)                            what came: netlink messages; `DumpError` where the kernel refused
    decode_diag(message, protocol) -> Socket            one of them
    decode_proc(text, protocol) -> list[Socket]         a file of /proc/net instead: no cookie, no cgroup

Sources: linux/inet_diag.h, linux/sock_diag.h, Documentation/networking/proc_net_tcp.rst. IPv4-mapped IPv6 addresses are IPv4's here, so
that both ends of a connection are written alike, whichever family a program's socket has.

A socket in TIME_WAIT has no owner any more, and neither has one that its program closed already: `uid` is None there, not 0.
"""

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Transport = Literal["tcp", "udp"]

STATES: Final = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "SYN_RECV",
}
"""include/net/tcp_states.h; 12 is a connection request that no program has accepted."""

TIME_WAIT_BIT: Final = 1 << 6
EVERY_STATE: Final = 0xFFF << 1

SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST_DUMP: Final = 0x301
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_FIXED: Final = struct.Struct(">4xHH")
_TAIL: Final = struct.Struct("=QIIIII")  # cookie, expires, receive queue, send queue, uid, inode
_REQUEST: Final = struct.Struct("=BBBxI48x")
_ATTRIBUTE: Final = struct.Struct("=HH")
_MESSAGE_BYTES: Final = 72

_ATTRIBUTE_CGROUP: Final = 21
_ATTRIBUTE_SOCKET_OPTIONS: Final = 22
_TRANSPARENT: Final = 0x20
_MAPPED: Final = bytes(10) + b"\xff\xff"
_PROTOCOLS: Final[dict[Transport, int]] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


class DumpError(Exception):
    """The kernel refused a dump, or what it sent cannot be read; `errno` where it named one."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket of this network namespace.

    Attributes:
        protocol: tcp or udp.
        local_address: Without brackets or zone.
        local_port: 1 to 65535; 0 where the socket has none yet.
        remote_address: The other end; the unspecified address where there is none.
        remote_port: 0 where there is none.
        state: A name of `STATES`; an unconnected UDP socket is CLOSE.
        uid: The owner's; None where nobody owns it any more, or not yet.
        cookie: The kernel's own number of this socket, the same for as long as it lives, TIME_WAIT included; None from /proc.
        cgroup_id: Of the control group that it was made in; None where not told.
        transparent: Whether it has IP_TRANSPARENT (TPROXY); None where not told.
        expires_ms: Until the running timer ends: of TIME_WAIT, its rest of 60 s.
    """

    protocol: Transport
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    state: str
    uid: int | None = None
    cookie: int | None = None
    cgroup_id: int | None = None
    transparent: bool | None = None
    expires_ms: int = 0

    @property
    def local(self) -> tuple[str, int]:
        """Address and port of this end."""
        return self.local_address, self.local_port

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of the other end."""
        return self.remote_address, self.remote_port

    @property
    def key(self) -> tuple[str, str, int, str, int, int | None]:
        """Tells this socket from every other one of the namespace, and of a later moment where cookies are known."""
        return self.protocol, self.local_address, self.local_port, self.remote_address, self.remote_port, self.cookie


def diag_request(family: int, protocol: Transport, states: int = EVERY_STATE) -> bytes:
    """The request that dumps all sockets of a family (AF_INET, AF_INET6) in the given states, a bit each."""
    body = _REQUEST.pack(family, _PROTOCOLS[protocol], 0, states)
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body


def split_messages(datagram: bytes) -> Iterator[bytes | None]:
    """The payloads in one datagram of a dump; None at the dump's end. Raises DumpError."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            raise DumpError(f"a netlink message of {length} bytes where {len(datagram) - offset} are left")
        if kind == _NLMSG_DONE:
            yield None
            return
        payload = datagram[offset + _HEADER.size : offset + length]
        if kind == _NLMSG_ERROR:
            raise _refusal(payload)
        yield payload
        offset += (length + 3) & ~3


def _refusal(payload: bytes) -> DumpError:
    if len(payload) < 4:
        return DumpError("a netlink error without a number")
    [number] = struct.unpack_from("=i", payload)
    return DumpError(f"the kernel refused the dump: errno {-number}", -number)


def raw_key(message: bytes) -> bytes:
    """What tells the socket of a sock_diag message from every other: addresses, ports, interface and cookie, undecoded."""
    return message[4:52]


def decode_diag(message: bytes, protocol: Transport) -> Socket:
    """One socket out of an `inet_diag_msg` with its attributes; raises DumpError."""
    if len(message) < _MESSAGE_BYTES:
        raise DumpError(f"a sock_diag message of {len(message)} bytes, at least {_MESSAGE_BYTES} were expected")
    family, number = message[0], message[1]
    if family not in {socket.AF_INET, socket.AF_INET6}:
        raise DumpError(f"a sock_diag message of address family {family}, expected 2 or 10")
    local_port, remote_port = _FIXED.unpack_from(message)
    cookie, expires, _, _, uid, inode = _TAIL.unpack_from(message, 44)
    cgroup_id, transparent = _attributes(message)
    return Socket(
        protocol,
        address(message[8:24], family),
        local_port,
        address(message[24:40], family),
        remote_port,
        STATES.get(number, f"STATE_{number}"),
        uid=uid if inode else None,
        cookie=cookie,
        cgroup_id=cgroup_id,
        transparent=transparent,
        expires_ms=expires,
    )


def _attributes(message: bytes) -> tuple[int | None, bool | None]:
    """The control group and whether it is transparent; what is cut short is not told."""
    cgroup_id: int | None = None
    transparent: bool | None = None
    offset = _MESSAGE_BYTES
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        value = message[offset + _ATTRIBUTE.size : offset + length]
        if kind == _ATTRIBUTE_CGROUP and len(value) == 8:
            [cgroup_id] = struct.unpack("=Q", value)
        elif kind == _ATTRIBUTE_SOCKET_OPTIONS and value:
            transparent = bool(value[0] & _TRANSPARENT)
        offset += (length + 3) & ~3
    return cgroup_id, transparent


def address(packed: bytes, family: int) -> str:
    """16 bytes of sock_diag as text; IPv4 has the first four of them."""
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


# --- /proc/net ------------------------------------------------------------------------------------------------------------


def decode_proc(text: str, protocol: Transport) -> list[Socket]:
    """The sockets of one file of /proc/net; raises DumpError, which names the line."""
    return [_proc_line(line, number, protocol) for number, line in enumerate(text.splitlines()[1:], 2) if line.strip()]


def _proc_line(line: str, number: int, protocol: Transport) -> Socket:
    fields = line.split()
    try:
        local_address, local_port = _proc_end(fields[1])
        remote_address, remote_port = _proc_end(fields[2])
        state, uid, inode = int(fields[3], 16), int(fields[7]), int(fields[9])
        # In clock ticks, of which Linux shows 100 a second to programs on every architecture that has this file.
        expires_ms = int(fields[5].partition(":")[2], 16) * 10
    except (IndexError, ValueError, OSError) as e:
        raise DumpError(
            f"line {number} of a socket table is not as proc_net_tcp.rst has it: {line.strip()[:80]!r}"
        ) from e
    return Socket(
        protocol,
        local_address,
        local_port,
        remote_address,
        remote_port,
        STATES.get(state, f"STATE_{state}"),
        uid=uid if inode else None,
        expires_ms=expires_ms,
    )


def _proc_end(text: str) -> tuple[str, int]:
    """`0100007F:1F90`: 32-bit words in the machine's byte order. Raises ValueError."""
    words, _, port = text.partition(":")
    raw = bytes.fromhex(words)
    if len(raw) not in {4, 16}:
        raise ValueError(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return address(raw, socket.AF_INET if len(raw) == 4 else socket.AF_INET6), int(port, 16)


# --- own addresses ----------------------------------------------------------------------------------------------------------

_RTM_GETADDR: Final = 22
_LINK_ADDRESS: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2


def address_request() -> bytes:
    """The rtnetlink request that dumps this namespace's addresses."""
    body = _LINK_ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + body


def decode_address(message: bytes) -> str | None:
    """The address in an `ifaddrmsg`; None where it has none that is IP's. On a point-to-point link IFA_LOCAL is ours."""
    if len(message) < _LINK_ADDRESS.size or message[0] not in {socket.AF_INET, socket.AF_INET6}:
        return None
    found: dict[int, bytes] = {}
    offset = _LINK_ADDRESS.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    width = 4 if message[0] == socket.AF_INET else 16
    return address(packed, message[0]) if len(packed) == width else None

"""Decoders of socket tables: what the kernel sends, what it never sends, and what a real one says of real sockets."""

import errno
import socket
import struct
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.witnesses.sockets import (
    DumpError,
    Socket,
    address,
    decode_address,
    decode_diag,
    decode_proc,
    diag_request,
    split_messages,
)
from collector.witnesses.sockets_dump import NetlinkTable, ProcTable, own_addresses, sum_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="sock_diag and /proc/net are Linux's")

ports = st.integers(0, 65535)
packed = st.binary(min_size=16, max_size=16)


def diag(family, local, local_port, remote, remote_port, *, state=1, uid=1000, inode=7, cookie=9, expires=0, tail=b""):
    """A message as include/uapi/linux/inet_diag.h lays it out."""
    head = struct.pack("=BBBB", family, state, 0, 0) + struct.pack(">HH", local_port, remote_port)
    return head + local + remote + struct.pack("=IQIIIII", 0, cookie, expires, 0, 0, uid, inode) + tail


@given(st.sampled_from([socket.AF_INET, socket.AF_INET6]), packed, ports, packed, ports, st.integers(0, 2**64 - 1))
def test_what_is_laid_out_is_read_back(family, local, local_port, remote, remote_port, cookie):
    found = decode_diag(diag(family, local, local_port, remote, remote_port, cookie=cookie), "tcp")
    assert (found.local_port, found.remote_port, found.cookie, found.state) == (
        local_port,
        remote_port,
        cookie,
        "ESTABLISHED",
    )
    assert found.local_address == address(local, family)
    width = 4 if family == socket.AF_INET else 16
    if not local.startswith(bytes(10) + b"\xff\xff") or width == 4:
        assert socket.inet_pton(family, found.local_address) == local[:width]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_socket_or_an_error(message):
    if len(message) >= 72 and message[0] in {socket.AF_INET, socket.AF_INET6}:
        assert isinstance(decode_diag(message, "tcp"), Socket)
        return
    with pytest.raises(DumpError, match="sock_diag"):
        decode_diag(message, "tcp")


@given(st.binary(max_size=300))
def test_any_datagram_ends(datagram):
    with suppress(DumpError):
        assert len(list(split_messages(datagram))) <= len(datagram)


@given(st.binary(max_size=100))
def test_any_address_message_is_an_address_or_nothing(message):
    found = decode_address(message)
    assert found is None or socket.inet_pton(socket.AF_INET6 if ":" in found else socket.AF_INET, found)


@given(st.text(max_size=200))
def test_any_text_is_a_table_or_an_error_that_names_the_line(text):
    entries = [line for line in ("header\n" + text).splitlines()[1:] if line.strip()]
    if not entries:
        assert decode_proc("header\n" + text, "tcp") == []
        return
    with pytest.raises(DumpError, match="line "):  # nothing that Hypothesis writes has ten fields of the right form
        decode_proc("header\n" + text, "tcp")


def test_mapped_addresses_are_ipv4s():
    mapped = bytes(10) + b"\xff\xff" + bytes([10, 1, 0, 7])
    assert decode_diag(diag(socket.AF_INET6, mapped, 1, mapped, 2), "tcp").local == ("10.1.0.7", 1)


def test_a_socket_in_time_wait_has_no_owner():
    found = decode_diag(
        diag(socket.AF_INET, bytes(16), 1, bytes(16), 2, state=6, uid=0, inode=0, expires=59_000), "tcp"
    )
    assert (found.state, found.uid, found.expires_ms) == ("TIME_WAIT", None, 59_000)


def test_attributes_tell_the_control_group_and_transparency():
    group = struct.pack("=HHQ", 12, 21, 4711)
    options = struct.pack("=HHBBxx", 6, 22, 0x20, 0)
    found = decode_diag(diag(socket.AF_INET, bytes(16), 1, bytes(16), 2, tail=group + options), "tcp")
    assert (found.cgroup_id, found.transparent) == (4711, True)


def test_a_refusal_carries_its_number():
    refused = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.EPERM)
    with pytest.raises(DumpError, match="errno 1") as caught:
        list(split_messages(refused))
    assert caught.value.errno == errno.EPERM


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is from a little-endian machine")
def test_proc_lines_of_both_families():
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0700010A:9C40 0900010A:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 20 4 30 10 -1\n"
        "   1: 0700010A:9C41 0900010A:1F90 06 00000000:00000000 03:0000176F 00000000     0        0 0 3 0\n"
    )
    live, waiting = decode_proc(text, "tcp")
    assert (live.local, live.remote, live.uid, live.cookie) == (("10.1.0.7", 40000), ("10.1.0.9", 8080), 1000, None)
    assert (waiting.state, waiting.uid, waiting.expires_ms) == ("TIME_WAIT", None, 0x176F * 10)
    six = (
        text.splitlines()[0]
        + "\n 0: 0000000000000000FFFF00000700010A:1F90 00000000000000000000000001000000:0050 0A 0:0 0:0 0 0 0 1 1"
    )
    [mapped] = decode_proc(six, "tcp")
    assert (mapped.local, mapped.remote, mapped.state) == (("10.1.0.7", 8080), ("::1", 80), "LISTEN")


def test_counters_are_summed_by_name():
    netstat = "TcpExt: SyncookiesSent ListenDrops Other\nTcpExt: 2 3 99\nIpExt: InNoRoutes\nIpExt: 5\n"
    assert sum_of(netstat, ["SyncookiesSent", "ListenDrops", "NotThere"]) == 5
    assert sum_of("", ["ListenDrops"]) == 0


@linux
def test_both_tables_see_the_same_real_connection():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            near, far = client.getsockname(), client.getpeername()
            netlink = NetlinkTable()
            for table in (netlink, ProcTable()):
                by_ends = {(s.local, s.remote): s for s in table.live()}
                assert by_ends[near, far].state == by_ends[far, near].state == "ESTABLISHED", table.name
                assert by_ends[far, ("0.0.0.0", 0)].state == "LISTEN"
            cookies = {s.cookie for s in netlink.live() if s.local == near}
        client.shutdown(socket.SHUT_WR)
    waiting = [s for s in netlink.time_wait() if {s.local, s.remote} == {near, far}]
    netlink.close()
    assert [s.state for s in waiting] == ["TIME_WAIT"]
    assert waiting[0].uid is None
    assert 0 < waiting[0].expires_ms <= 60_000
    assert waiting[0].local != near or waiting[0].cookie in cookies


@linux
def test_a_known_socket_in_time_wait_is_told_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        near = client.getsockname()
        client.close()
        assert accepted.recv(1) == b""
        accepted.close()
    table = NetlinkTable()
    first, second = table.time_wait(), table.time_wait()
    table.close()
    assert near in {s.local for s in first}
    assert near not in {s.local for s in second}


@linux
def test_own_addresses_have_loopback():
    assert "127.0.0.1" in own_addresses()


def test_the_request_is_an_inet_diag_request():
    request = diag_request(socket.AF_INET6, "udp", 1 << 6)
    length, kind, flags, _, _, family, protocol, extensions, states = struct.unpack_from("=IHHIIBBBxI", request)
    assert (length, kind, flags) == (len(request), 20, 0x301)
    assert (family, protocol, extensions, states) == (socket.AF_INET6, socket.IPPROTO_UDP, 0, 1 << 6)

"""Compressed bodies in all the shapes that a sender, or an attacker, may give them."""

import gzip
import struct
import sys
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import DecodeError
from collector.receiver.inflate import MAX_MEMBERS, TooLargeError, inflate, is_known

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024


def bare(body):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


PACKERS = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bare": bare,
    "zstd": zstd.compress,
}
NAMES = {"gzip": "gzip", "zlib": "deflate", "bare": "deflate", "zstd": "zstd"}
formats = pytest.mark.parametrize("packing", PACKERS)
joinable = pytest.mark.parametrize("packing", ["gzip", "zstd"])


def packed_and_inflated(packing, body, limit):
    return inflate(PACKERS[packing](body), NAMES[packing], limit)


@formats
@given(body=st.binary(max_size=2000))
def test_what_was_packed_comes_out(packing, body):
    assert packed_and_inflated(packing, body, 2000) == body


@formats
def test_several_steps_of_output(packing):
    body = bytes(range(256)) * 4096 * 5
    assert packed_and_inflated(packing, body, 5 * MIB) == body


@formats
def test_incompressible_input_of_several_steps(packing):
    body = bytes(zlib.crc32(struct.pack("<I", n)) & 255 for n in range(100_000))
    assert packed_and_inflated(packing, body, MIB) == body


@joinable
@given(first=st.binary(max_size=2000), second=st.binary(max_size=2000))
def test_members_are_joined(packing, first, second):
    pack = PACKERS[packing]
    assert inflate(pack(first) + pack(second), NAMES[packing], 10_000) == first + second


def test_other_names():
    assert inflate(gzip.compress(b"x"), "x-gzip", 9) == b"x"
    assert inflate(zlib.compress(b"x"), "zlib", 9) == b"x"
    assert all(map(is_known, ["gzip", "x-gzip", "deflate", "zlib", "zstd"]))
    assert not any(map(is_known, ["", "identity", "br", "snappy", "lz4", "GZIP"]))


@formats
def test_the_limit_is_inclusive(packing):
    assert len(packed_and_inflated(packing, b"x" * 100, 100)) == 100
    with pytest.raises(TooLargeError, match="exceeds 100 bytes"):
        packed_and_inflated(packing, b"x" * 101, 100)


def bomb(packing):
    """64 MiB of zeros, in less than a hundred KiB."""
    if packing == "zstd":
        return zstd.compress(bytes(64 * MIB), options={zstd.CompressionParameter.window_log: 23})
    packer = zlib.compressobj(9, zlib.DEFLATED, {"gzip": 31, "zlib": 15, "bare": -15}[packing])
    return b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()


@formats
def test_a_bomb_stops_at_the_limit(packing):
    body = bomb(packing)
    assert len(body) < MIB
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            inflate(body, NAMES[packing], 4 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB + 4 * MIB


def test_a_result_as_large_as_the_limit_is_held_in_pieces_and_once_whole():
    body = gzip.compress(bytes(32 * MIB))
    tracemalloc.start()
    try:
        inflated = inflate(body, "gzip", 32 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(inflated) == 32 * MIB
    assert peak < 2 * 32 * MIB + 2 * MIB


def zstd_frame_with_window(log):
    """The header of a frame of unknown size that asks for a window of 2^log bytes, and one empty last block (RFC 8878)."""
    return b"\x28\xb5\x2f\xfd" + bytes([0, (log - 10) << 3]) + b"\x01\x00\x00"


def test_a_zstd_window_beyond_8_mib_is_refused_before_it_is_allocated():
    assert inflate(zstd_frame_with_window(23), "zstd", MIB) == b""
    for log in (24, 27, 31, 41):
        with pytest.raises(DecodeError, match=r"not zstd: .*too much memory"):
            inflate(zstd_frame_with_window(log), "zstd", MIB)


def test_a_zstd_frame_that_lies_about_its_size_is_limited_by_what_comes_out():
    claimed = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + (2**62).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(DecodeError):
        inflate(claimed, "zstd", MIB)


@joinable
def test_members_are_limited(packing):
    empty = PACKERS[packing](b"")
    assert inflate(empty * MAX_MEMBERS, NAMES[packing], 10) == b""
    with pytest.raises(DecodeError, match=f"more than {MAX_MEMBERS} members"):
        inflate(empty * (MAX_MEMBERS + 1), NAMES[packing], 10)


@formats
def test_an_empty_body_is_empty(packing):
    assert inflate(b"", NAMES[packing], 10) == b""


@formats
@pytest.mark.parametrize("length", [1, 5, 10, 15, 25, 60])
def test_a_body_that_ends_early_is_refused(packing, length):
    body = PACKERS[packing](b"0123456789" * 100 + bytes(range(200)))
    with pytest.raises(DecodeError, match="ends early"):
        inflate(body[:length], NAMES[packing], MIB)


@pytest.mark.parametrize(
    ("packing", "body"),
    [
        ("gzip", b"not gzip at all"),
        ("gzip", zlib.compress(b"zlib")),
        ("gzip", gzip.compress(b"x", mtime=0) + b"trailing"),
        ("gzip", gzip.compress(b"x", mtime=0) + b"\0"),
        ("deflate", gzip.compress(b"x", mtime=0)),
        ("deflate", b"\xff\xff not deflate"),
        ("zstd", gzip.compress(b"x", mtime=0)),
        ("zstd", zstd.compress(b"x") + b"trailing"),
    ],
)
def test_what_is_not_its_encoding_is_refused(packing, body):
    with pytest.raises(DecodeError, match=f"not {packing}|ends early"):
        inflate(body, packing, MIB)


@pytest.mark.parametrize("body", [zlib.compress(b"x"), bare(b"x")])
def test_deflate_has_one_stream(body):
    with pytest.raises(DecodeError, match="goes on after its end"):
        inflate(body + b"trailing", "deflate", MIB)


@pytest.mark.parametrize(("packing", "place"), [("gzip", -6), ("zlib", -2)])
def test_a_wrong_checksum_is_refused(packing, place):
    body = bytearray(PACKERS[packing](b"x" * 100))
    body[place] ^= 1
    with pytest.raises(DecodeError, match=f"not {NAMES[packing]}"):
        inflate(bytes(body), NAMES[packing], MIB)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_inflated_and_nothing_else(encoding, body):
    with suppress(DecodeError):
        assert len(inflate(body, encoding, 1000)) <= 1000


@formats
@given(st.data())
def test_flipped_bytes_are_refused_or_inflated_and_nothing_else(packing, data):
    body = bytearray(PACKERS[packing](b"0123456789" * 100 + bytes(range(200))))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(DecodeError):
        assert len(inflate(bytes(body), NAMES[packing], 5000)) <= 5000

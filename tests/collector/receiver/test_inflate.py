"""gzip in all the shapes that a sender, or an attacker, may give it."""

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import DecodeError
from collector.receiver.inflate import TooLargeError, gunzip

MIB = 1024 * 1024


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_members_are_joined(first, second):
    assert gunzip(gzip.compress(first) + gzip.compress(second), 10_000) == first + second


def test_several_steps_of_output():
    body = bytes(range(256)) * 4096 * 5
    assert gunzip(gzip.compress(body), 5 * MIB) == body


def test_the_limit_is_inclusive():
    assert len(gunzip(gzip.compress(b"x" * 100), 100)) == 100
    with pytest.raises(TooLargeError, match="exceeds 100 bytes"):
        gunzip(gzip.compress(b"x" * 101), 100)


def test_a_bomb_stops_at_the_limit():
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    assert len(bomb) < MIB
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            gunzip(bomb, 4 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB


@pytest.mark.parametrize("length", [1, 5, 10, 15, 25, 60])
def test_a_body_that_ends_early_is_refused(length):
    body = gzip.compress(b"0123456789" * 100 + bytes(range(200)))
    with pytest.raises(DecodeError, match="ends early"):
        gunzip(body[:length], MIB)


@pytest.mark.parametrize(
    "body", [b"not gzip at all", zlib.compress(b"zlib"), gzip.compress(b"x", mtime=0) + b"trailing"]
)
def test_what_is_not_gzip_is_refused(body):
    with pytest.raises(DecodeError, match="not gzip"):
        gunzip(body, MIB)


def test_a_wrong_checksum_is_refused():
    body = bytearray(gzip.compress(b"x" * 100))
    body[-6] ^= 1
    with pytest.raises(DecodeError, match="not gzip"):
        gunzip(bytes(body), MIB)

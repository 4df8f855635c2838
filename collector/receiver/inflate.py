"""gzip bodies, inflated with the limit on what comes out: a megabyte can hold a gibibyte of zeros."""

import zlib
from typing import Final

from collector.errors import DecodeError

_GZIP: Final = 16 + zlib.MAX_WBITS
_STEP: Final = 1024 * 1024


class TooLargeError(DecodeError):
    """A body that exceeds the limit, as sent or inflated."""


def too_large(limit: int) -> TooLargeError:
    """The error for a body that exceeds `limit` bytes."""
    return TooLargeError(f"the request exceeds {limit} bytes (after decompression): send smaller batches")


def gunzip(body: bytes, limit: int) -> bytes:
    """The contents of a gzip file of one or more members (RFC 1952, section 2.2).

    Never holds more than `limit` bytes and one step of output.

    Raises:
        TooLargeError: It inflates to more than `limit` bytes.
        DecodeError: It is not gzip, or ends early.
    """
    inflated = bytearray()
    rest = body
    while rest:
        member = zlib.decompressobj(_GZIP)
        try:
            while not member.eof:
                piece = member.decompress(rest, _STEP)
                rest = member.unused_data if member.eof else member.unconsumed_tail
                inflated += piece
                if len(inflated) > limit:
                    raise too_large(limit)
                if not piece and not rest and not member.eof:
                    raise DecodeError(f"the gzip body ends early, after {len(body)} bytes")
        except zlib.error as error:
            raise DecodeError(f"the body is not gzip: {error}") from error
    return bytes(inflated)

"""Which spans, and which proxies' records, were stored lately: how what is sent twice is stored once.

A sender that got no answer sends again, and its first request may have been committed all the same. Retries come within
seconds, so only the newest spans are remembered, and only as bits: a filter says "surely new" of nearly every span, for 20 ns a
span, and the table itself is asked about the few others.

Two spans are the same when ids, kind, times and resource are the same. Equal ids alone are not enough: Zipkin's clients and servers
share a span's id, and whoever can guess an id must not be able to keep the real span out by being first. A proxy's record has an id that
is a hash of its content and of who sent it.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

IDENTITY: Final = ("trace_id", "span_id", "kind", "start_time_unix_nano", "end_time_unix_nano", "resource_id")
"""The columns of `spans` that tell one span from another."""

CAPACITY: Final = 1 << 20
"""Rows a generation. Its table has a word of 64 bits for each: two generations take 16 MiB once they are full."""

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_WORDS_A_ROW: Final = 2
_BITS_A_WORD: Final = 4
"""Four bits in each of two words err six times less often than seven in one word of a table twice as large: what errs there are words that
many rows share."""

_ODD: Final = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB],
    dtype=np.uint64,
)  # fmt: skip
_FINISH: Final = np.uint64(0xFF51AFD7ED558CCD)


def span_hashes(spans: pa.RecordBatch | pa.Table) -> Hashes:
    """64 bits of each span's identity (without its kind: a client's and a server's spans differ in more than that)."""
    ids = _numbers(spans, "trace_id")
    columns = [ids[0::2], ids[1::2], *(_numbers(spans, name) for name in IDENTITY if name not in {"trace_id", "kind"})]
    mixed = np.zeros(spans.num_rows, dtype=np.uint64)
    for column, odd in zip(columns, _ODD, strict=True):
        mixed ^= column * odd
        mixed ^= mixed >> np.uint64(29)
    mixed *= _FINISH
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _numbers(spans: pa.RecordBatch | pa.Table, name: str) -> Hashes:
    """A required column of 8 or 16 bytes a value, as 64-bit words."""
    column = spans.column(name)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # how combine_chunks answers when there is nothing to combine
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    words = array.type.bit_width // 64
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.zeros(0, dtype=np.uint64)
    return np.frombuffer(data, dtype=np.uint64, count=words * len(array), offset=array.offset * 8 * words)


class Recent:
    """The hashes of at least the last `capacity` rows: never misses one of them, and errs on about three in two million others."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity & (capacity - 1):
            raise ValueError(f"the capacity is a power of two, not {capacity}")
        self._capacity = capacity
        self._tables: list[Hashes] = [np.zeros(capacity, dtype=np.uint64) for _ in range(2)]
        self._counts = [0, 0]
        self._oldest: list[int | None] = [None, None]

    @property
    def since(self) -> int | None:
        """The earliest received_unix_nano of what it knows; None when it knows nothing."""
        return min((oldest for oldest in self._oldest if oldest is not None), default=None)

    def maybe_known(self, hashes: Hashes) -> Mask:
        """Of each row whether it may be known; False is certain."""
        marks = list(self._marks(hashes))
        known = np.zeros(len(hashes), dtype=np.bool_)
        for table in self._tables:
            in_table = np.ones(len(hashes), dtype=np.bool_)
            for places, bits in marks:
                in_table &= (table[places] & bits) == bits
            known |= in_table
        return known

    def add(self, hashes: Hashes, received_unix_nano: int) -> None:
        """Remember these; `received_unix_nano` is the earliest of theirs."""
        if self._counts[0] + len(hashes) > self._capacity:
            self._tables = [np.zeros(self._capacity, dtype=np.uint64), self._tables[0]]
            self._counts = [0, self._counts[0]]
            self._oldest = [None, self._oldest[0]]
        for places, bits in self._marks(hashes):
            np.bitwise_or.at(self._tables[0], places, bits)
        self._counts[0] += len(hashes)
        self._oldest[0] = min(received_unix_nano, self._oldest[0] or received_unix_nano)

    def _marks(self, hashes: Hashes) -> Iterator[tuple[Any, Hashes]]:
        """Each word that a hash is in, and which bits of it are set."""
        one, six, low = np.uint64(1), np.uint64(6), np.uint64(63)
        for odd in _ODD[:_WORDS_A_ROW]:
            mixed = hashes * odd
            rest = mixed >> np.uint64(64 - 6 * _BITS_A_WORD)
            bits = np.zeros(len(hashes), dtype=np.uint64)
            for _ in range(_BITS_A_WORD):
                bits |= one << (rest & low)
                rest = rest >> six
            # From the middle: of a product the low bits hang on the low bits of the hash alone.
            place = (mixed >> np.uint64(8)) & np.uint64(self._capacity - 1)
            yield place.astype(np.int64), bits

"""Fields are counted as protobuf would find them, and no bytes are too strange to be counted."""

from hypothesis import given
from hypothesis import strategies as st

from collector.otlp.fields import fields_of


def varint(number: int) -> bytes:
    low, number = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(number) if number else bytes([low])


NUMBERS = st.integers(1, 2**29 - 1)
FIELDS = st.one_of(
    st.tuples(NUMBERS, st.just(0), st.integers(0, 2**64 - 1).map(varint)),
    st.tuples(NUMBERS, st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(NUMBERS, st.just(2), st.binary(max_size=300).map(lambda b: varint(len(b)) + b)),
    st.tuples(NUMBERS, st.just(5), st.binary(min_size=4, max_size=4)),
)


def written(fields: list[tuple[int, int, bytes]]) -> bytes:
    return b"".join(varint(number << 3 | kind) + content for number, kind, content in fields)


@given(st.lists(FIELDS), st.integers(0, 40))
def test_all_fields_are_counted_up_to_one_more_than_asked(fields: list[tuple[int, int, bytes]], most: int) -> None:
    count, is_flat = fields_of(memoryview(written(fields)), most)
    assert count == min(len(fields), most + 1)
    assert is_flat or len(fields) > most


@given(st.lists(FIELDS, max_size=5), NUMBERS)
def test_a_groups_fields_are_counted_with_its_two_ends(fields: list[tuple[int, int, bytes]], number: int) -> None:
    group = varint(number << 3 | 3) + written(fields) + varint(number << 3 | 4)
    assert fields_of(group, 100) == (len(fields) + 2, False)


@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_bytes_are_counted(message: bytes, most: int) -> None:
    assert 0 <= fields_of(message, most)[0] <= most + 1


@given(st.lists(FIELDS, min_size=1), st.data())
def test_a_message_that_is_cut_off_is_not_all_fields(fields: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    message = written(fields)
    last = len(written(fields[-1:]))
    cut = message[: data.draw(st.integers(len(message) - last + 1, len(message) - 1))]
    assert fields_of(cut, 100) in {(len(fields) - 1, False), (len(fields), False)}


@given(st.lists(FIELDS, min_size=1, max_size=5))
def test_what_is_no_field_ends_the_count(fields: list[tuple[int, int, bytes]]) -> None:
    assert fields_of(written(fields) + b"\x0f" + written(fields), 100) == (len(fields), False)

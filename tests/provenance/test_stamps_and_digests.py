"""The wire forms: what is rendered is read back, and whatever else arrives is refused by name and never otherwise."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.digest import (
    EMPTY_HASH,
    DigestError,
    RunningHash,
    parse_content_digest,
    render_content_digest,
    request_hash,
)
from provenance.names import STAMP_ABSENT, STAMP_MALFORMED, STAMP_MISMATCHED, STAMP_STATUSES, STAMP_UNSIGNED
from provenance.stamp import MAX_KID_BYTES, MAX_STAMP_LENGTH, Stamp, StampError, judge, make_kid, parse, render
from provenance.structured import Opaque, StructuredFieldError, parse_dictionary, render_bytes, render_string

NONCE = bytes(range(12))
STAMP = Stamp(1, "checkout", 1763859600123, NONCE)
TEXT = 'v=1, kid="checkout", t=1763859600123, n=:AAECAwQFBgcICQoL:'

utf8 = st.characters(codec="utf-8")
kids = st.text(utf8, min_size=1, max_size=80).filter(lambda kid: len(kid.encode()) <= MAX_KID_BYTES)
stamps = st.builds(
    Stamp,
    version=st.just(1),
    kid=kids,
    time_unix_ms=st.integers(0, 10**15 - 1),
    nonce=st.binary(min_size=12, max_size=12),
    span_id=st.none() | st.binary(min_size=8, max_size=8),
    mac=st.none() | st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64),
)
near_misses = st.lists(
    st.sampled_from(
        [
            "v=1",
            'kid="a"',
            "t=1",
            "n=:AAECAwQFBgcICQoL:",
            "x=(1 2;a)",
            ",",
            ", ",
            ";",
            "=",
            '"',
            ":",
            "\x7f",
            "é",
            "(",
            "%",
        ]
    ),
    max_size=12,
).map("".join)


def test_a_stamp_has_the_documented_form() -> None:
    assert render(STAMP) == TEXT
    assert parse(TEXT) == STAMP


@given(stamps)
def test_every_stamp_survives_the_wire(stamp: Stamp) -> None:
    text = render(stamp)

    assert parse(text) == stamp
    assert text.isascii()
    assert text.isprintable(), "gRPC refuses other metadata, and would fail the host's call"
    assert len(text) <= MAX_STAMP_LENGTH


@given(st.text() | near_misses)
def test_any_text_is_a_stamp_or_a_stamp_error(text: str) -> None:
    try:
        stamp = parse(text)
    except StampError:
        return
    assert parse(render(stamp)) == stamp


@given(st.text() | near_misses, st.none() | st.text() | near_misses, st.none() | st.just(EMPTY_HASH))
def test_judging_never_fails(stamp: str, digest: str | None, actual: str | None) -> None:
    assert judge(stamp, digest, actual)[0] in STAMP_STATUSES


@pytest.mark.parametrize(
    "text",
    [
        TEXT + ', later=:AAAA:, later, list=(1 tok;p=1 "s");q, f=1.5, b=?0, d=@17, w=%"f%c3%bc"',
        TEXT.replace("v=1", 'v=1;a;b="x";c=:AA==:'),
        "v=7, " + TEXT,  # "the last one wins"
        f"  {TEXT}  ",
        TEXT.replace(", ", "\t,\t "),
        TEXT.replace('kid="checkout"', 'kid=%"checkout"'),
    ],
)
def test_what_the_rfc_says_to_ignore_is_ignored(text: str) -> None:
    assert parse(text) == STAMP


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT + ",",
        "," + TEXT,
        TEXT + " x",
        TEXT.replace("v=1", "v=2"),
        TEXT.replace("v=1", "v=1.0"),
        TEXT.replace("v=1", 'v="1"'),
        TEXT.replace("v=1", "V=1"),
        TEXT.replace("v=1, ", ""),
        TEXT.replace('kid="checkout"', 'kid=""'),
        TEXT.replace('kid="checkout"', "kid=checkout"),
        TEXT.replace('kid="checkout"', 'kid="check\\out"'),
        TEXT.replace('kid="checkout"', 'kid="ü"'),
        TEXT.replace('kid="checkout"', 'kid=%"%FC"'),
        TEXT.replace('kid="checkout"', 'kid=%"%fc"'),
        TEXT.replace("t=1763859600123", "t=-1"),
        TEXT.replace("t=1763859600123", "t=1234567890123456"),
        TEXT.replace("n=:AAECAwQFBgcICQoL:", "n=:AAECAwQFBgcICQo=:"),
        TEXT.replace("n=:AAECAwQFBgcICQoL:", "n=:AAECAwQFBgcICQoLA:"),
        TEXT.replace("n=:AAECAwQFBgcICQoL:", "n=:AAEC*wQFBgcICQoL:"),
        TEXT.replace("n=:AAECAwQFBgcICQoL:", "n=:AAECAwQFBgcICQoL"),
        TEXT + ", x=(1 2",
        TEXT + ", x=(1,2)",
        TEXT + ", x=(1;)",
        TEXT + ", x=" + "1" * MAX_STAMP_LENGTH,
        f'{TEXT}, pad="{"x" * MAX_STAMP_LENGTH}"',
    ],
)
def test_a_malformed_stamp_is_refused(text: str) -> None:
    with pytest.raises(StampError):
        parse(text)


@pytest.mark.parametrize(
    ("kid", "time_unix_ms", "nonce"),
    [
        ("", 1, NONCE),
        ("x" * (MAX_KID_BYTES + 1), 1, NONCE),
        ("\ud800", 1, NONCE),
        ("a", -1, NONCE),
        ("a", 10**15, NONCE),
        ("a", 1, b"short"),
    ],
)
def test_no_stamp_exists_that_cannot_travel(kid: str, time_unix_ms: int, nonce: bytes) -> None:
    with pytest.raises(StampError):
        Stamp(1, kid, time_unix_ms, nonce)


@given(st.text())
def test_every_service_name_makes_a_kid(name: str) -> None:
    Stamp(1, make_kid(name), 0, NONCE)


def test_a_usual_service_name_is_its_own_kid() -> None:
    assert make_kid("checkout") == "checkout"
    assert make_kid("prüfstand") == "prüfstand"
    assert make_kid("") == "unknown_service"
    assert len(make_kid("ü" * 200).encode()) <= MAX_KID_BYTES


@given(st.binary())
def test_a_digest_survives_the_wire(body: bytes) -> None:
    hash_hex = request_hash(body)

    assert parse_content_digest(render_content_digest(hash_hex)) == hash_hex == hashlib.sha256(body).hexdigest()


@given(st.text() | st.text(alphabet='sha-256=:;, AB/+"()1', max_size=80))
def test_any_text_is_a_digest_or_a_digest_error(text: str) -> None:
    try:
        hash_hex = parse_content_digest(text)
    except DigestError:
        return
    assert hash_hex is None or len(bytes.fromhex(hash_hex)) == 32


def test_a_digest_is_found_among_other_algorithms() -> None:
    # RFC 9530 section 2 gives both digests of '{"hello": "world"}' plus a line feed.
    text = (
        "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:,"
        "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    )

    assert parse_content_digest(text) == request_hash(b'{"hello": "world"}\n')
    assert parse_content_digest("md5=:1B2M2Y8AsgTpgAmY7PhCfg==:") is None


@pytest.mark.parametrize("text", ["sha-256=abc", "sha-256=:AAAA:", "sha-256", "sha-256=:AAAA", "x" * 2000])
def test_a_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(DigestError):
        parse_content_digest(text)


@given(st.lists(st.binary(max_size=50)))
def test_a_running_hash_does_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    running = RunningHash()
    for piece in pieces:
        running.update(piece)

    assert running.hexdigest() == request_hash(b"".join(pieces))
    assert running.size == sum(map(len, pieces))


@pytest.mark.parametrize(
    ("stamp", "digest", "actual", "status", "read"),
    [
        (None, None, EMPTY_HASH, STAMP_ABSENT, None),
        (None, "sha-256=garbage", EMPTY_HASH, STAMP_ABSENT, None),
        ("garbage!", render_content_digest(EMPTY_HASH), EMPTY_HASH, STAMP_MALFORMED, None),
        (TEXT, "sha-256=garbage", EMPTY_HASH, STAMP_MALFORMED, STAMP),
        (TEXT, render_content_digest("ab" * 32), EMPTY_HASH, STAMP_MISMATCHED, STAMP),
        (
            TEXT,
            render_content_digest("ab" * 32),
            None,
            STAMP_UNSIGNED,
            STAMP,
        ),  # not read to its end: nothing is claimed
        (TEXT, render_content_digest(EMPTY_HASH), EMPTY_HASH, STAMP_UNSIGNED, STAMP),
        (TEXT, None, EMPTY_HASH, STAMP_UNSIGNED, STAMP),  # a streamed body travels without a digest
        (TEXT, "md5=:AAAA:", EMPTY_HASH, STAMP_UNSIGNED, STAMP),
    ],
)
def test_what_a_callee_says_of_a_request(
    stamp: str | None, digest: str | None, actual: str | None, status: str, read: Stamp | None
) -> None:
    assert judge(stamp, digest, actual)[:2] == (status, read)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("   ", {}),
        ("a=1,a=2", {"a": 2}),
        ('a="x\\"\\\\y"', {"a": 'x"\\y'}),
        ("a", {"a": Opaque("?1")}),
        ("a;b;c=1,*d=tok/en:x", {"a": Opaque("?1"), "*d": Opaque("tok/en:x")}),
        ("a=()", {"a": Opaque("()")}),
        ("a=( 1  2 );q=1, b=-7", {"a": Opaque("( 1  2 )"), "b": -7}),
        ("a=:" + base64.b64encode(b"xy").decode().rstrip("=") + ":", {"a": b"xy"}),
        ("a=-1.125", {"a": Opaque("-1.125")}),
    ],
)
def test_dictionaries(text: str, members: dict[str, object]) -> None:
    assert parse_dictionary(text, max_length=100) == members


@pytest.mark.parametrize(
    "text",
    [
        "a=",
        "a=1 b=2",
        "a=1;",
        "a=1;=2",
        "a=1.",
        "a=1.2345",
        "a=--1",
        "a=?2",
        "a=@1.5",
        "\ta=1",
        "a=12345678901234567",
        "a=(1 2",
    ],
)
def test_what_is_no_dictionary(text: str) -> None:
    with pytest.raises(StructuredFieldError):
        parse_dictionary(text, max_length=100)


BASE64_SLIPS = st.text(alphabet="AEQgw4059+/=ab-_ ", min_size=8, max_size=90)


@given(
    kid=st.text(alphabet='ab/1._-@: é"\\', min_size=1, max_size=8),
    nonce=st.binary(min_size=12, max_size=12).map(render_bytes) | BASE64_SLIPS.map(lambda text: f":{text}:"),
    mac=st.binary(min_size=32, max_size=32).map(render_bytes) | BASE64_SLIPS.map(lambda text: f":{text}:"),
)
def test_what_is_read_at_a_glance_is_what_the_parser_reads(kid: str, nonce: str, mac: str) -> None:
    text = f"v=1, kid={render_string(kid)}, t=17, n={nonce}, s=:AAAAAAAAAAA=:, mac={mac}"
    slowly = text.replace("v=1,", "v=1 ,")  # another form of the same, which only the parser takes

    def outcome(text: str) -> Stamp | None:
        try:
            return parse(text)
        except StampError:
            return None

    assert outcome(text) == outcome(slowly)
    if len(mac) == 46:
        digest = f"sha-256={mac}"
        assert digest_or_none(digest) == digest_or_none(f"{digest} ")


def digest_or_none(text: str) -> str | None:
    try:
        return parse_content_digest(text)
    except DigestError:
        return None

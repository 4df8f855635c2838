"""Keys from a JWKS, what a MAC covers, and that nobody without the key can make one."""

import hmac
import json
import os
import threading
import time
from concurrent import futures
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance import faults, signing
from provenance.keys import (
    ALGORITHMS,
    ED25519,
    HMAC,
    Ed25519Key,
    HmacKey,
    KeysError,
    KeySet,
    make_key_id,
    new_key,
    parse_key_set,
    render_key_set,
    service_of,
    version_of,
)
from provenance.outgoing import Request, stamp_call
from provenance.stamp import Seen, Stamp, canonical_target, parse, render, signed_text, span_id_of, text_hash

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SEEN = Seen("POST", "/pay?to=ann", "ab" * 32, TRACEPARENT)
STAMP = Stamp(1, "checkout/3", 1763859600123, bytes(range(12)), bytes.fromhex("00f067aa0ba902b7"))


# --- keys ---------------------------------------------------------------------------------------------------------------


@given(secret=st.binary(min_size=32, max_size=200), message=st.binary(max_size=300))
def test_an_hmac_is_what_the_standard_library_makes(secret: bytes, message: bytes) -> None:
    assert HmacKey("a/1", secret).sign(message) == hmac.digest(secret, message, "sha256")


def test_the_ed25519_vector_of_rfc_8037() -> None:
    text = json.dumps(
        {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "kid": "a/1",
                    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
                    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
                }
            ]
        }
    )
    signature = parse_key_set(text).by_kid["a/1"].sign(b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc")
    assert signature.hex().startswith("860c98d2297f3060a33f42739672d61b")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_set_is_read_as_it_was_written(algorithm: str) -> None:
    keys = KeySet.of(new_key("checkout", version, algorithm) for version in (1, 2))
    again = parse_key_set(render_key_set(keys))

    signature = keys.by_kid["checkout/2"].sign(b"x")
    assert list(again.by_kid) == ["checkout/1", "checkout/2"]
    assert again.by_kid["checkout/2"].verify(b"x", signature)
    assert not again.by_kid["checkout/2"].verify(b"y", signature)
    assert not again.by_kid["checkout/1"].verify(b"x", signature)


def test_what_is_public_can_verify_and_has_no_secret() -> None:
    keys = KeySet.of([new_key("a", 1, HMAC), new_key("a", 2, ED25519)])
    public = parse_key_set(render_key_set(keys, public=True))

    assert list(public.by_kid) == ["a/2"], "an HMAC key is nothing but a secret"
    assert public.signing_key("a") is None
    assert public.by_kid["a/2"].verify(b"x", keys.by_kid["a/2"].sign(b"x"))
    with pytest.raises(KeysError, match="no secret half"):
        public.by_kid["a/2"].sign(b"x")


def test_a_service_signs_with_its_newest_key() -> None:
    keys = KeySet.of([new_key("a", 9, HMAC), new_key("a", 10, HMAC), new_key("a/b", 99, HMAC), new_key("b", 11, HMAC)])

    key = keys.signing_key("a")
    assert key is not None
    assert key.kid == "a/10"
    assert (keys.newest_version("a"), keys.newest_version("c")) == (10, 0)
    assert (service_of("a/b/99"), version_of("a/b/99")) == ("a/b", 99)
    assert (service_of("a"), version_of("a")) == ("a", 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "not a JWKS"),
        ('{"keys": {}}', "not a JWKS"),
        ('{"keys": [1]}', r"keys\[0\]: expected an object"),
        ('{"keys": [{"kty": "oct"}]}', r"keys\[0\]: kid None, expected"),
        ('{"keys": [{"kty": "oct", "kid": "a/0"}]}', "version from 1"),
        ('{"keys": [{"kty": "RSA", "kid": "a/1"}]}', "'RSA'"),
        ('{"keys": [{"kty": "oct", "kid": "a/1"}]}', "k must be there"),
        ('{"keys": [{"kty": "oct", "kid": "a/1", "k": "a+b="}]}', "k must be there, in base64url"),
        ('{"keys": [{"kty": "oct", "kid": "a/1", "k": "AAAA"}]}', "at least 32"),
        ('{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a/1", "x": "AAAA"}]}', "32 bytes"),
        ('{"keys": [{"kty": "OKP", "crv": "Ed448", "kid": "a/1"}]}', "Ed448"),
    ],
)
def test_a_key_set_that_cannot_be_used_says_which_key_and_why(text: str, said: str) -> None:
    with pytest.raises(KeysError, match=said):
        parse_key_set(text)


def test_keys_that_contradict_are_refused() -> None:
    one, other = new_key("a", 1, ED25519), new_key("a", 2, ED25519)
    assert isinstance(one, Ed25519Key)
    assert isinstance(other, Ed25519Key)
    with pytest.raises(KeysError, match="not the secret half"):
        Ed25519Key("a/1", one.public, other.private)
    with pytest.raises(KeysError, match="there twice"):
        KeySet.of([one, one])
    with pytest.raises(KeysError, match="bytes of UTF-8"):
        make_key_id("a" * 255, 1)
    with pytest.raises(KeysError, match="surrogate"):
        make_key_id("\ud800", 1)


@given(st.text(max_size=200))
def test_no_text_is_a_key_set_by_accident(text: str) -> None:
    with pytest.raises(KeysError):
        parse_key_set(text)


# --- what a MAC covers ----------------------------------------------------------------------------------------------------


def test_the_signed_text_is_this() -> None:
    """Fixed for good: another line, and stamps of yesterday are no longer verified."""
    assert signed_text(STAMP, SEEN).split("\n") == [
        "provenance 1",
        '"checkout/3"',
        "1763859600123",
        "000102030405060708090a0b",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
        "POST",
        "/pay?to=ann",
        "ab" * 32,
    ]


CHANGES = {
    "kid": (STAMP._replace(kid="checkout/4"), SEEN),
    "time": (STAMP._replace(time_unix_ms=1), SEEN),
    "nonce": (STAMP._replace(nonce=bytes(12)), SEEN),
    "span": (STAMP._replace(span_id=bytes(8)), SEEN),
    "span dropped": (STAMP._replace(span_id=None), SEEN),
    "method": (STAMP, SEEN._replace(method="PUT")),
    "path": (STAMP, SEEN._replace(target="/refund?to=ann")),
    "query": (STAMP, SEEN._replace(target="/pay?to=eve")),
    "digest": (STAMP, SEEN._replace(digest_hex="cd" * 32)),
    "digest dropped": (STAMP, SEEN._replace(digest_hex=None)),
    "trace": (STAMP, SEEN._replace(traceparent=TRACEPARENT.replace("4bf9", "4bfa"))),
    "trace dropped": (STAMP, SEEN._replace(traceparent=None)),
    "trace doubled": (STAMP, SEEN._replace(traceparent=f"{TRACEPARENT}, {TRACEPARENT}")),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_the_mac_is_another_calls(change: str, algorithm: str) -> None:
    key = new_key("checkout", 3, algorithm)
    mac = key.sign(text_hash(STAMP, SEEN))

    assert key.verify(text_hash(STAMP, SEEN), mac)
    assert not key.verify(text_hash(*CHANGES[change]), mac)


def test_a_proxy_that_traces_or_writes_the_path_another_way_changes_nothing() -> None:
    by_a_proxy = SEEN._replace(traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-00")
    assert text_hash(STAMP, by_a_proxy) == text_hash(STAMP, SEEN)
    begun_by_a_proxy = STAMP._replace(span_id=None)
    assert text_hash(begun_by_a_proxy, SEEN) == text_hash(begun_by_a_proxy, SEEN._replace(traceparent=None))
    assert canonical_target("/a%2Fb%c3%a9?q=%C3%A9") == canonical_target("/a/b%C3%A9?q=%C3%A9")
    assert canonical_target("") == canonical_target("/") == "/"


@given(target=st.text(max_size=80), other=st.text(max_size=80))
def test_any_target_has_one_form(target: str, other: str) -> None:
    assert canonical_target(canonical_target(target)) == canonical_target(target)
    text_hash(STAMP, SEEN._replace(method=other, target=target))


@given(
    kid=st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable()),
    span_id=st.none() | st.binary(min_size=8, max_size=8),
    mac=st.none() | st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64),
)
def test_a_stamp_is_read_as_it_was_written(kid: str, span_id: bytes | None, mac: bytes | None) -> None:
    stamp = Stamp(1, kid, 17, bytes(12), span_id, mac)
    assert parse(render(stamp)) == stamp


def test_span_ids_come_from_a_trace_context_that_can_be_read() -> None:
    assert span_id_of(TRACEPARENT) == bytes.fromhex("00f067aa0ba902b7")
    assert [span_id_of(each) for each in (None, "", "00-xyz", f"{TRACEPARENT}, {TRACEPARENT}")] == [None] * 4


def test_a_call_with_a_key_goes_signed_over_what_it_carries() -> None:
    key = new_key("checkout", 3, HMAC)
    request = Request("POST", "/pay", "ab" * 32, 5, {"traceparent": [TRACEPARENT]})
    outgoing = stamp_call(request, Stamp(1, "checkout", 17, bytes(12)), key=key, request_id=None)

    stamp = parse(dict(outgoing.headers)["provenance"])
    assert (stamp.kid, stamp.span_id) == ("checkout/3", bytes.fromhex("00f067aa0ba902b7"))
    assert stamp.mac is not None
    seen = Seen("POST", "/pay", "ab" * 32, TRACEPARENT)
    assert key.verify(text_hash(stamp, seen), stamp.mac)
    assert outgoing.attributes["provenance.stamp.mac"] == stamp.mac.hex()
    assert outgoing.attributes["provenance.stamp.text_hash"] == text_hash(stamp, seen).hex()


# --- the file -------------------------------------------------------------------------------------------------------------


def write(path: Path, *versions: int) -> None:
    path.write_text(render_key_set(KeySet.of(new_key("checkout", version, HMAC) for version in versions)))


def kid_now(keys: signing.KeyFile) -> str | None:
    keys._look_at = 0.0  # a second has passed
    key = keys.signing_key("checkout")
    return None if key is None else key.kid


def test_a_file_that_changes_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults.reset()
    path = tmp_path / "keys.json"
    write(path, 1)
    keys = signing.KeyFile(path)
    assert kid_now(keys) == "checkout/1"
    write(path, 1, 2)
    assert kid_now(keys) == "checkout/2"
    path.write_text("{")
    assert kid_now(keys) == "checkout/2"
    path.unlink()
    assert kid_now(keys) == "checkout/2"
    assert faults.counts() == {"keys": 2}
    assert str(path) in caplog.text
    write(path, 1, 2, 3)
    assert kid_now(keys) == "checkout/3"
    faults.reset()


def test_the_very_first_calls_are_signed_however_many_begin_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, 1)
    for _ in range(20):
        keys, begin = signing.KeyFile(path), threading.Barrier(8)

        def first(keys: signing.KeyFile = keys, begin: threading.Barrier = begin) -> object:
            begin.wait()
            return keys.signing_key("checkout")

        with futures.ThreadPoolExecutor(8) as pool:
            assert None not in [each.result() for each in [pool.submit(first) for _ in range(8)]]


def test_a_file_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    write(path, 1)
    keys = signing.KeyFile(path)
    keys.signing_key("checkout")
    looks: list[object] = []
    monkeypatch.setattr("provenance.signing.os.stat", looks.append)
    now = time.monotonic()
    monkeypatch.setattr("provenance.signing.time.monotonic", lambda: now)

    for _ in range(100):
        assert keys.signing_key("checkout") is not None
    assert looks == []


def test_the_environment_names_a_file_unless_the_program_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one.json", 1)
    write(tmp_path / "two.json", 2)
    monkeypatch.setenv(signing.ENVIRONMENT, os.fspath(tmp_path / "one.json"))
    try:
        signing.sign_as_the_environment_says()
        assert signing.signing_key("checkout").kid == "checkout/1"  # type: ignore[union-attr]
        signing.sign_with(tmp_path / "two.json")
        signing.sign_as_the_environment_says()
        assert signing.signing_key("checkout").kid == "checkout/2"  # type: ignore[union-attr]
        assert signing.signing_key("gateway") is None
    finally:
        signing.sign_with(None)
    assert signing.signing_key("checkout") is None

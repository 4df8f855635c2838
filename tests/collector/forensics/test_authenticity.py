"""Verdicts on stamped calls, on evidence as the middleware leaves it; one attack at a time."""

from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from collector.errors import ConfigError
from collector.forensics.authenticity import FAILED, TOLERANCE_MS, VERDICTS, verify
from collector.forensics.principals import named_by, parse_principals
from collector.forensics.tables import Window
from provenance.incoming import incoming_attributes
from provenance.keys import HMAC, KeySet, new_key
from provenance.names import STAMP, TRACEPARENT
from provenance.outgoing import Request, stamp_call
from provenance.recording import PLAIN, Recording
from provenance.stamp import Stamp, parse, render
from tests.collector.forensics.factories import MS, T0, make_span, next_id, store

KEYS = KeySet.of(new_key(service, version, HMAC) for service in ("web", "mallory", "hashes") for version in (1, 2))
BODY, OTHER_BODY = "ab" * 32, "cd" * 32


class Evidence:
    """Calls that the middleware's own functions stamp and describe; what lies between, a test may change."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.recording = PLAIN

    def send(
        self, *, service: str = "web", key: str | None = "web", at: int = T0, body: str | None = BODY, seen: bool = True
    ) -> dict[str, str]:
        """What a call carries; `seen`: its client span is evidence."""
        trace, span = next_id(), next_id()
        own = {TRACEPARENT: [f"00-{trace:032x}-{span:016x}-01"]}
        stamp = Stamp(1, service, at // MS, sha256(next_id().to_bytes(12)).digest()[:12])
        request = Request("POST", "/pay?to=ann", body, 5, own)
        signing_key = None if key is None else KEYS.signing_key(key)
        outgoing = stamp_call(request, stamp, key=signing_key, request_id=None, recording=self.recording)
        if seen:
            self._add("CLIENT", service, trace, span, at, outgoing.attributes)
        return dict(outgoing.headers) | {TRACEPARENT: own[TRACEPARENT][0]}

    def arrive(
        self,
        headers: dict[str, str],
        *,
        at: int = T0 + MS,
        target: str = "/pay?to=ann",
        body: str | None = BODY,
        principal: str | None = None,
        **columns: Any,
    ) -> None:
        """The call at its callee."""
        attributes = incoming_attributes(
            headers, method="POST", target=target, hash_hex=body, size=5, certified=principal, recording=self.recording
        )
        trace = int(headers[TRACEPARENT].split("-")[1], 16) if TRACEPARENT in headers else next_id()
        self._add("SERVER", "pay", trace, next_id(), at, attributes, **columns)

    def _add(
        self, kind: str, service: str, trace: int, span: int, at: int, attributes: dict[str, Any], **columns: Any
    ) -> None:
        hot = {key.replace(".", "_"): value for key, value in attributes.items()}
        rest = {
            key: hot.pop(key.replace(".", "_"))
            for key in list(attributes)
            if key.endswith(("mac", "text_hash", "principal", "hash_key", "keyed_hash"))
        }
        self.rows.append(
            make_span(
                kind=kind, service_name=service, trace_id=trace, span_id=span, start_time_unix_nano=at,
                attributes=rest, **hot, **columns,
            )
        )  # fmt: skip

    def verdicts(self, window: Window | None = None, **options: Any) -> list[str]:
        frame = verify(store(self.rows), window or Window(), options.pop("keys", KEYS.by_kid), **options)
        assert all(frame["reason"].to_list())
        return frame["verdict"].to_list()


def altered(headers: dict[str, str], **changes: Any) -> dict[str, str]:
    """The call with another stamp, as somebody on the way could write it."""
    return headers | {STAMP: render(parse(headers[STAMP])._replace(**changes))}


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


def test_a_signed_call_is_valid_and_an_unsigned_one_unsigned() -> None:
    evidence = Evidence()
    evidence.arrive(evidence.send())
    evidence.arrive(evidence.send(key=None), at=T0 + 2 * MS)
    evidence.arrive(evidence.send(body=None), at=T0 + 3 * MS, body=OTHER_BODY)  # a stream: its hash is on the spans
    evidence.arrive(evidence.send(seen=False), at=T0 + 4 * MS)

    assert evidence.verdicts() == ["valid", "unsigned", "valid", "valid"]


ATTACKS: dict[str, tuple[str, Callable[[Evidence], None]]] = {
    "another body": ("tampered", lambda e: e.arrive(e.send(), body=OTHER_BODY)),
    "another body with its digest": (
        "tampered",
        lambda e: e.arrive(e.send() | {"content-digest": f"sha-256=:{'zc3N' * 10}zc0=:"}, body=OTHER_BODY),
    ),
    "another body, no digest": ("tampered", lambda e: e.arrive(without(e.send(), "content-digest"), body=OTHER_BODY)),
    "another target": ("tampered", lambda e: e.arrive(e.send(), target="/pay?to=eve")),
    "no trace context": ("tampered", lambda e: e.arrive(without(e.send(), TRACEPARENT))),
    "another trace": (
        "tampered",
        lambda e: e.arrive(e.send() | {TRACEPARENT: f"00-{next_id():032x}-{next_id():016x}-01"}),
    ),
    "no stamp": ("absent", lambda e: e.arrive(without(e.send(), STAMP))),
    "no MAC": ("unsigned", lambda e: e.arrive(altered(e.send(), mac=None))),
    "a MAC of noise": ("forged", lambda e: e.arrive(altered(e.send(), mac=bytes(32)))),
    "another nonce": ("forged", lambda e: e.arrive(altered(e.send(), nonce=bytes(12)))),
    "another time": ("tampered", lambda e: e.arrive(altered(e.send(), time_unix_ms=1))),
    "another service's kid": ("forged", lambda e: e.arrive(altered(e.send(seen=False), kid="mallory/1"))),
    "a kid that nobody has": ("unknown key", lambda e: e.arrive(altered(e.send(), kid="web/3"))),
    "another service's key": ("impersonated", lambda e: e.arrive(e.send(service="mallory", key="web"))),
    "an old call": ("expired", lambda e: e.arrive(e.send(), at=T0 + (TOLERANCE_MS + 1_000) * MS)),
    "a call from the future": ("expired", lambda e: e.arrive(e.send(), at=T0 - (TOLERANCE_MS + 1_000) * MS)),
    "noise for a stamp": ("malformed", lambda e: e.arrive(e.send() | {STAMP: "v=1, kid="})),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_has_its_verdict(attack: str) -> None:
    verdict, play = ATTACKS[attack]
    evidence = Evidence()
    evidence.arrive(evidence.send(), at=T0 + 1)
    play(evidence)

    assert sorted(evidence.verdicts()) == sorted(["valid", verdict])
    assert verdict in VERDICTS


def test_the_same_call_twice_is_a_replay_and_a_call_sent_again_after_a_failure_is_none() -> None:
    evidence = Evidence()
    once, again = evidence.send(), evidence.send()
    evidence.arrive(once)
    evidence.arrive(once, at=T0 + 2 * MS)
    evidence.arrive(again, at=T0 + 3 * MS, http_response_status_code=503)
    evidence.arrive(again, at=T0 + 4 * MS)
    evidence.arrive(again, at=T0 + 5 * MS)

    assert evidence.verdicts() == ["valid", "replayed", "valid", "valid", "replayed"]


def test_a_span_that_was_delivered_twice_is_one_call() -> None:
    evidence = Evidence()
    evidence.arrive(evidence.send())
    evidence.rows += evidence.rows

    assert evidence.verdicts() == ["valid"]


def test_without_keys_what_needs_none_is_found_all_the_same() -> None:
    evidence = Evidence()
    call = evidence.send(key=None)
    evidence.arrive(call)
    evidence.arrive(call, at=T0 + 2 * MS)
    evidence.arrive(evidence.send(key=None), at=T0 + 3 * MS, body=OTHER_BODY)
    evidence.arrive(evidence.send(), at=T0 + 4 * MS)

    assert evidence.verdicts(keys={}) == ["unsigned", "replayed", "tampered", "unknown key"]


def test_a_window_and_a_trace_limit_what_is_judged_and_not_what_is_known() -> None:
    evidence = Evidence()
    call = evidence.send(at=T0 - MS)
    evidence.arrive(call, at=T0)
    evidence.arrive(call, at=T0 + 10 * MS)
    evidence.arrive(evidence.send(), at=T0 + 11 * MS)
    trace = call[TRACEPARENT].split("-")[1]

    assert evidence.verdicts(Window(T0 + 5 * MS, T0 + 11 * MS)) == ["replayed"]
    assert evidence.verdicts(trace_id=trace) == ["valid", "replayed"]
    assert evidence.verdicts(trace_id="0" * 31 + "1") == []


def test_evidence_that_was_written_by_hand_is_judged_too() -> None:
    evidence = Evidence()
    evidence.arrive(evidence.send())
    evidence.rows[-1]["attributes"] = {"provenance.stamp.mac": "no hex", "provenance.stamp.text_hash": ""}

    assert evidence.verdicts() == ["forged"]
    assert "forged" in FAILED


def spiffe(account: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{account}"


def test_a_principal_that_contradicts_the_stamp_is_an_impersonation_where_that_is_known_and_no_sooner() -> None:
    evidence = Evidence()
    evidence.arrive(evidence.send(), principal=spiffe("web"))
    evidence.arrive(evidence.send(), at=T0 + 2 * MS, principal=spiffe("mallory"))
    evidence.arrive(evidence.send(), at=T0 + 3 * MS, principal=spiffe("gateway"))
    assert evidence.verdicts() == ["valid"] * 3  # of mallory nothing shows yet that it is no second name of web

    evidence.arrive(evidence.send(service="mallory", key="mallory"), at=T0 + 4 * MS, principal=spiffe("mallory"))
    assert evidence.verdicts() == ["valid", "impersonated", "valid", "valid"]

    evidence.arrive(
        evidence.send(key=None), at=T0 + 5 * MS, principal=spiffe("mallory")
    )  # unsigned: the mesh knows better
    assert evidence.verdicts()[-1] == "impersonated"


def test_a_file_says_whose_principals_are() -> None:
    evidence = Evidence()
    for at, account in enumerate(("web", "jobs", "gateway", "mallory"), 1):
        evidence.arrive(evidence.send(), at=T0 + at * MS, principal=spiffe(account))
    listed = parse_principals(
        f'intermediaries = ["{spiffe("gateway")}"]\n[services]\nweb = ["{spiffe("web")}", "{spiffe("jobs")}"]'
    )
    others = parse_principals(f'[services]\nmallory = "{spiffe("mallory")}"')

    assert evidence.verdicts(principals=listed) == ["valid", "valid", "valid", "impersonated"]
    assert evidence.verdicts(principals=others) == ["valid", "valid", "valid", "impersonated"]


def test_linkerds_identities_name_a_service_too_and_others_name_none() -> None:
    assert named_by("web.shop.serviceaccount.identity.linkerd.cluster.local") == "web"
    assert named_by(spiffe("web")) == "web"
    assert named_by("spiffe://cluster.local/web") is None
    assert named_by("web") is None


@pytest.mark.parametrize(
    "text", ["x", "a = 1", "services = 1", "[services]\nweb = 1", "[services]\nweb = ['']", "intermediaries = [1]"]
)
def test_a_file_of_principals_that_cannot_be_read_says_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="expected intermediaries"):
        parse_principals(text)


def test_in_batches_the_verdicts_are_the_same() -> None:
    evidence = Evidence()
    for at in range(12):
        call = evidence.send()
        evidence.arrive(call, at=T0 + (4 * at + 1) * MS)
        evidence.arrive(call, at=T0 + (4 * at + 2) * MS)
        evidence.arrive(without(evidence.send(), STAMP), at=T0 + (4 * at + 3) * MS)
    tally = Counter[str]()

    assert evidence.verdicts(batch_rows=4, tally=tally) == ["valid", "replayed", "absent"] * 12
    assert tally == {"valid": 12, "replayed": 12, "absent": 12}
    assert evidence.verdicts(batch_rows=4, only=FAILED) == ["replayed"] * 12


@pytest.mark.parametrize("attack", ATTACKS)
def test_with_keyed_hashes_each_attack_has_the_same_verdict(attack: str) -> None:
    verdict, play = ATTACKS[attack]
    evidence = Evidence()
    evidence.recording = Recording(is_keyed=True, key=KEYS.by_kid["hashes/2"])
    evidence.arrive(evidence.send(), at=T0 + 1)
    play(evidence)

    assert sorted(evidence.verdicts()) == sorted(["valid", verdict])
    recorded = str(evidence.rows)
    assert BODY not in recorded
    assert OTHER_BODY not in recorded


def test_hashes_of_two_keys_are_not_compared_and_an_unknown_one_is_told() -> None:
    evidence = Evidence()
    evidence.recording = Recording(is_keyed=True, key=KEYS.by_kid["hashes/1"])
    call = evidence.send()
    evidence.recording = Recording(is_keyed=True, key=KEYS.by_kid["hashes/2"])
    evidence.arrive(call)
    assert evidence.verdicts() == ["valid"]

    without_it = {kid: key for kid, key in KEYS.by_kid.items() if not kid.startswith("hashes/")}
    assert evidence.verdicts(keys=without_it) == ["unknown key"]


def test_without_its_key_nothing_of_a_body_is_recorded() -> None:
    evidence = Evidence()
    evidence.recording = Recording(is_keyed=True)
    evidence.arrive(evidence.send(key=None))

    assert evidence.verdicts() == ["unsigned"]
    assert BODY not in str(evidence.rows)


def test_the_key_that_everybody_has_proves_nobody() -> None:
    evidence = Evidence()
    evidence.arrive(evidence.send(service="hashes", key="hashes"))

    assert evidence.verdicts() == ["unknown key"]

"""Failures are counted and said once; patches come out again; imports stay light."""

# ruff: noqa: FBT001  (pytest passes parameters by name)

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import provenance
from provenance import faults
from provenance.digest import render_content_digest
from provenance.outgoing import Request, own_headers, stamp_call
from provenance.patching import Patch
from provenance.stamp import Stamp, parse


@pytest.fixture(autouse=True)
def _no_faults() -> None:
    faults.reset()


def test_a_fault_is_counted_always_and_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(3):
        faults.report("grpc.client", ValueError("broken"))
    faults.report("http.client", ValueError("other"))

    assert faults.counts() == {"grpc.client": 3, "http.client": 1}
    assert [(r.name, r.levelno) for r in caplog.records] == [("provenance", logging.WARNING)] * 2
    assert "broken" in caplog.text, "the traceback is there"

    now += faults.LOG_INTERVAL_SECONDS
    faults.report("grpc.client", ValueError("broken"))
    assert "4 so far" in caplog.records[-1].getMessage()


def test_errors_are_contained_and_ends_are_not() -> None:
    with faults.Contained("here"):
        raise ValueError
    for end in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(end), faults.Contained("here"):
            raise end

    assert faults.counts() == {"here": 1}


FORK_WHILE_LOCKS_ARE_HELD = """
import os, signal
from provenance import faults, patching, setup
faults.report("here", ValueError())
with faults._lock, patching._lock, setup._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that waits for ever ends by this
        assert faults.counts() == {}, "the parent's failures are the parent's"
        faults.report("here", ValueError())
        assert faults.counts() == {"here": 1}
        with patching._lock, setup._lock:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert faults.counts() == {"here": 1}
print("fine")
"""


def test_a_forked_process_waits_for_nobody_and_counts_anew() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK_WHILE_LOCKS_ARE_HELD], capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


class Host:
    """Somebody else's class."""

    def greet(self) -> str:
        return "hello"


def shouting(original: Callable[[Any], str], patch: Patch) -> Callable[[Any], str]:
    def greet(self: Any) -> str:
        return original(self).upper() if patch.active else original(self)

    return greet


def test_a_patch_comes_out_again() -> None:
    before = Host.greet
    patch = Patch(Host, "greet", shouting)
    patch.apply()
    patch.apply()
    assert Host().greet() == "HELLO"

    patch.restore()
    patch.restore()
    assert Host.greet is before


def test_a_patch_beneath_somebody_elses_falls_asleep_and_wakes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = Patch(Host, "greet", shouting)
    patch.apply()
    ours = Host.greet
    monkeypatch.setattr(Host, "greet", lambda self: ours(self) + "!")

    patch.restore()
    assert Host().greet() == "hello!", "theirs stays in place"
    patch.apply()
    assert Host().greet() == "HELLO!", "and ours is there once"


def test_what_a_stamped_call_carries_and_says() -> None:
    stamp = Stamp(1, "checkout", 17, bytes(12))
    outgoing = stamp_call(Request("POST", "/pay", "ab" * 32, 5, {}), stamp, key=None, request_id="r-1")

    assert [name for name, _ in outgoing.headers] == ["content-digest", "provenance", "x-request-id"]
    assert parse(dict(outgoing.headers)["provenance"]) == stamp
    assert outgoing.attributes == {
        "provenance.request.hash": "ab" * 32,
        "provenance.request.size": 5,
        "provenance.request_id": "r-1",
        "provenance.stamp.kid": "checkout",
        "provenance.stamp.nonce": "00" * 12,
        "provenance.stamp.time_unix_ms": 17,
    }


def test_what_is_not_known_is_not_said() -> None:
    stamp = Stamp(1, "checkout", 17, bytes(12))
    outgoing = stamp_call(Request("POST", "/pay", None, 0, {"x-request-id": ["a b"]}), stamp, key=None, request_id=None)

    assert [name for name, _ in outgoing.headers] == ["provenance"]
    assert outgoing.attributes.keys() == {f"provenance.stamp.{key}" for key in ("kid", "nonce", "time_unix_ms")}


HASH = "ab" * 32
RIGHT, WRONG = render_content_digest(HASH), render_content_digest("cd" * 32)


@pytest.mark.parametrize(
    ("digests", "beside_a_stamp", "hash_hex", "sent"),
    [
        ([], False, HASH, [RIGHT]),
        ([], False, None, []),
        (["sha-512=:AAAA:"], False, HASH, ["sha-512=:AAAA:"]),
        (["nonsense!"], False, HASH, ["nonsense!"]),
        ([RIGHT], False, HASH, [RIGHT]),
        ([WRONG], False, HASH, [WRONG]),  # the caller's own, and the caller's fault
        ([RIGHT], True, HASH, [RIGHT]),
        ([WRONG], True, HASH, [RIGHT]),  # a gateway forwarded it with the stamp that goes too
        ([WRONG], True, None, [WRONG]),  # nobody knows yet whether it is
        ([WRONG, "sha-512=:AAAA:"], True, HASH, [WRONG, "sha-512=:AAAA:"]),
        ([f"{WRONG}, sha-512=:AAAA:"], True, HASH, [f"{WRONG}, sha-512=:AAAA:"]),
    ],
)
def test_a_digest_of_the_callers_own_is_not_altered(
    digests: list[str], beside_a_stamp: bool, hash_hex: str | None, sent: list[str]
) -> None:
    headers = [("Content-Digest", each) for each in digests] + [("Provenance", "v=1")] * beside_a_stamp
    request = Request("POST", "/pay", hash_hex, 5, own_headers(headers))
    outgoing = stamp_call(request, Stamp(1, "checkout", 17, bytes(12)), key=None, request_id=None)

    kept = [] if "content-digest" in outgoing.replaced else digests
    assert kept + [value for name, value in outgoing.headers if name == "content-digest"] == sent
    assert outgoing.attributes.get("provenance.request.hash") == hash_hex, "the span says it all the same"


def test_importing_provenance_is_cheap() -> None:
    code = "import provenance, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}

    assert "provenance" in loaded
    heavy = {"duckdb", "pyarrow", "textual", "polars", "numpy", "opentelemetry"}
    frameworks = {"grpc", "httpx", "starlette", "urllib3", "requests", "aiohttp", "flask", "django"}
    assert loaded & (heavy | frameworks) == set()


def test_the_package_exports_what_it_documents() -> None:
    for name in provenance.__all__:
        assert getattr(provenance, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = provenance.nothing

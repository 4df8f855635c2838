"""Enforce mode: a callee refuses calls whose stamps do not prove who made them. Observe mode, the default, never comes here.

A refusal tells the caller which of five things to look at, and nobody whether a key exists: a stamp with an unknown key and one
with a wrong MAC are refused alike. What fails in here refuses too: a lock that opens when it breaks is none.

Nonces are remembered for as long as their stamps are fresh, in this process alone: another replica takes a call that was
replayed to it, and `provenance verify` tells it afterwards.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from provenance import names
from provenance.faults import report
from provenance.forks import Lock
from provenance.incoming import promised_hash
from provenance.keys import Key
from provenance.signing import verification_key
from provenance.stamp import Seen, Stamp, StampError, parse, text_hash

PLACE: Final = "enforcement"
MODE: Final = "PROVENANCE_MODE"
TOLERANCE: Final = "PROVENANCE_TOLERANCE_SECONDS"
EXCLUDED: Final = "PROVENANCE_ENFORCE_EXCLUDED"
MODES: Final = ("observe", "enforce")

DEFAULT_TOLERANCE_SECONDS: Final = 300.0
DEFAULT_EXCLUDED: Final = ("/grpc.health.v1.Health/", "/healthz", "/livez", "/readyz")
"""Beginnings of paths that nobody with a key asks: the orchestrator's probes."""

MAX_NONCES: Final = 1_000_000
"""Remembered at once, about 150 MB; beyond it the oldest are forgotten first."""

NO_STAMP: Final = "a signed stamp is required"
MALFORMED: Final = "the stamp cannot be read"
NOT_PROVEN: Final = "the stamp does not prove its sender"
NOT_FRESH: Final = "the stamp's time is too far from this service's clock"
SEEN_BEFORE: Final = "the stamp has been used before"
ALTERED: Final = "the body is not the one that content-digest promises"


@dataclass(slots=True)
class Nonces:
    """Which stamps came, as long as they are fresh; at most so many."""

    limit: int = MAX_NONCES
    _expiry_ms: OrderedDict[tuple[str, bytes], int] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def is_new(self, stamp: Stamp, *, now_ms: int, tolerance_ms: int) -> bool:
        """Whether this stamp came for the first time; from now on it did."""
        key = (stamp.kid, stamp.nonce)
        with self._lock:
            if self._expiry_ms.get(key, -1) >= now_ms:
                return False
            while self._expiry_ms and (
                len(self._expiry_ms) >= self.limit or next(iter(self._expiry_ms.values())) < now_ms
            ):
                self._expiry_ms.popitem(last=False)
            # Fresh until its time is `tolerance` ago; that time may itself be as far ahead of our clock.
            self._expiry_ms[key] = now_ms + 2 * tolerance_ms
            return True

    def __len__(self) -> int:
        return len(self._expiry_ms)


@dataclass(frozen=True, slots=True)
class Guard:
    """What a service refuses, and by which clock and keys."""

    key_of: Callable[[str], Key | None]
    tolerance_ms: int = int(DEFAULT_TOLERANCE_SECONDS * 1000)
    excluded: tuple[str, ...] = DEFAULT_EXCLUDED
    nonces: Nonces = field(default_factory=Nonces)
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000

    def refusal(
        self, headers: Mapping[str, str], *, method: str, target: str, actual_hash: str | None = None
    ) -> str | None:
        """Why this call is refused; None: it is taken.

        `headers` by lowercase name. `actual_hash` is None where the body is not here yet: then `body_refusal` is asked later.
        """
        if target.startswith(self.excluded):
            return None
        try:
            return self._refusal(headers, method, target, actual_hash)
        except Exception as error:  # noqa: BLE001  (what cannot be checked is not let in)
            report(PLACE, error)
            return NOT_PROVEN

    def _refusal(self, headers: Mapping[str, str], method: str, target: str, actual_hash: str | None) -> str | None:
        header = headers.get(names.STAMP)
        if header is None:
            return NO_STAMP
        try:
            stamp = parse(header)
        except StampError:
            return MALFORMED
        if stamp.mac is None:
            return NO_STAMP
        digest = headers.get(names.CONTENT_DIGEST)
        promised = promised_hash(digest)
        if digest is not None and promised is None:
            return MALFORMED
        key = self.key_of(stamp.kid)
        seen = Seen(method, target, promised, headers.get(names.TRACEPARENT))
        if key is None or not key.verify(text_hash(stamp, seen), stamp.mac):
            return NOT_PROVEN
        now_ms = self.clock_ms()
        if abs(now_ms - stamp.time_unix_ms) > self.tolerance_ms:
            return NOT_FRESH
        if body := body_refusal(promised, actual_hash):
            return body
        # Last, so that nobody without the key can fill the memory, or use up another's nonce.
        return None if self.nonces.is_new(stamp, now_ms=now_ms, tolerance_ms=self.tolerance_ms) else SEEN_BEFORE


def body_refusal(promised: str | None, actual_hash: str | None) -> str | None:
    """Why a body is refused that is here in full; None: it is the one that was promised, or none was."""
    return ALTERED if None not in {promised, actual_hash} and promised != actual_hash else None


_guard: Guard | None = None


class ModeError(ValueError):
    """A setting of enforce mode that cannot be used: raised where the service starts, because observing instead is no lock."""


def enforce(guard: Guard | None) -> None:
    """Refuse what this guard refuses from now on; None: observe."""
    global _guard  # noqa: PLW0603  (one process, one mode)
    _guard = guard


def current_guard() -> Guard | None:
    """The guard of this process; None in observe mode."""
    return _guard


def guard_of(environ: Mapping[str, str], mode: str | None = None) -> Guard | None:
    """The guard that `mode`, or else the environment, asks for.

    Raises:
        ModeError: No such mode, or a tolerance that is no positive number.
    """
    asked = (mode or environ.get(MODE, "")).strip().lower() or "observe"
    if asked not in MODES:
        message = f"{MODE}={asked!r}: expected observe or enforce"
        raise ModeError(message)
    if asked == "observe":
        return None
    text = environ.get(TOLERANCE, "").strip() or str(DEFAULT_TOLERANCE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        message = f"{TOLERANCE}={text!r}: expected seconds, more than 0"
        raise ModeError(message)
    more = tuple(path.strip() for path in environ.get(EXCLUDED, "").split(",") if path.strip())
    return Guard(verification_key, int(seconds * 1000), DEFAULT_EXCLUDED + more)


def enforce_as_the_environment_says() -> None:
    """Enforce if `PROVENANCE_MODE` says so, unless the program did."""
    if _guard is None:
        enforce(guard_of(os.environ))

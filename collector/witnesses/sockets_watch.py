"""What a socket witness remembers between its looks, and what it has to report. Pure: times are arguments.

    watch.observe(Look(...))                 one look: a dump, a second one where the first had suspects, the sockets in TIME_WAIT
    watch.report(until_unix_nano) -> Report  what is new since the last report

A verdict once reached stays with its socket, whatever state it is in later: a connection whose proxy's end has gone was still captured. The
kernel's cookie tells that it is the same one, also in TIME_WAIT.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Final

from collector.witnesses.sockets import Socket
from collector.witnesses.sockets_judge import Judged, Key, Proxy, Reading, Snapshot, confirmed, read

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
TIME_WAIT_MS: Final = 60_000
"""TCP_TIMEWAIT_LEN of include/net/tcp.h, a constant of the kernel."""

ALIVE_EVERY_NS: Final = 30 * NS_PER_S
"""So often is a connection that goes on reported again, for its `last_seen`."""

FORGET_NS: Final = 150 * NS_PER_S
"""After so long without a sight of it a socket is forgotten: more than two rounds of TIME_WAIT."""

MAX_ROWS: Final = 5_000
"""Of one report. What is more comes with the next ones, oldest first."""

MAX_KEPT: Final = 100_000
"""Sockets that are remembered at once; Linux draws 28,000 ports for each destination. More are counted and left out."""


_ENDED: Final = frozenset({"TIME_WAIT", "LAST_ACK", "CLOSING", "CLOSE"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Who looks: the witness's name, and the workload and replica in whose network namespace it runs."""

    source: str
    service_name: str
    service_instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the table.

    Attributes:
        at_unix_nano: When.
        first: The dump, without TIME_WAIT.
        second: A dump after it, where the first had suspects.
        time_wait: TCP sockets in TIME_WAIT; None when it was not their turn.
    """

    at_unix_nano: int
    first: Snapshot
    second: Snapshot | None = None
    time_wait: tuple[Socket, ...] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one POST to /v1/sockets carries.

    Attributes:
        identity: Who looked.
        watch: When, and what was there: a row of `socket_watches` without what the identity says.
        sockets: Rows of `sockets`, likewise.
        left_out: Sockets that were not remembered, for want of room.
    """

    identity: Identity
    watch: dict[str, Any]
    sockets: tuple[dict[str, Any], ...]
    left_out: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "source": self.identity.source,
            "service_name": self.identity.service_name,
            "service_instance_id": self.identity.service_instance_id,
            "watch": self.watch,
            "sockets": list(self.sockets),
        }


@dataclass(slots=True)
class _Kept:
    """What is known of one socket."""

    judged: Judged
    first_seen: int
    last_seen: int
    attributes: dict[str, str]
    is_new: bool = True
    reported_at: int = 0


@dataclass(slots=True)
class _Period:
    """Since the last report."""

    since: int | None = None
    until: int = 0
    samples: int = 0
    proxy_found: bool = False
    addresses: set[str] = field(default_factory=set)


class Watch:
    """One pod's sockets over time."""

    def __init__(self, identity: Identity, proxy: Proxy, *, interval_ns: int) -> None:
        self._identity = identity
        self._proxy = proxy
        self._interval_ns = interval_ns
        self._kept: dict[Key, _Kept] = {}
        self._listened: frozenset[int] = frozenset()
        self._period = _Period()
        self._has_news = False
        self._left_out = 0

    @property
    def listened(self) -> frozenset[int]:
        """TCP ports that were listened on in any look so far."""
        return self._listened

    def suspects(self, first: Snapshot) -> bool:
        """Whether a dump has suspects that are not known yet, so that a second dump is worth its time."""
        judged = read(self._with_memory(first), self._proxy).judged
        return any(j.suspect and not self._is_decided(j.socket) for j in judged)

    def observe(self, look: Look) -> None:
        """Take one look into account."""
        first = read(self._with_memory(look.first), self._proxy)
        bypassing = frozenset[Key]()
        if look.second is not None:
            bypassing = confirmed(first, read(self._with_memory(look.second), self._proxy))
        self._remember(look, first)
        for judged in first.judged:
            self._see(judged, look.at_unix_nano, is_bypassing=judged.socket.key in bypassing)
        if look.time_wait is not None:
            self._see_time_wait(look)

    def report(self, until_unix_nano: int) -> Report:
        """What is new, and begin the next period; the rows are the caller's to deliver from now on."""
        due = [k for k in self._kept.values() if self._is_due(k, until_unix_nano)]
        due.sort(key=lambda kept: kept.first_seen)
        told = due[:MAX_ROWS]
        for kept in told:
            kept.is_new, kept.reported_at = False, until_unix_nano
        rows = tuple(self._row(kept) for kept in told)
        report = Report(self._identity, self._watch_row(until_unix_nano), rows, self._left_out)
        self._period = _Period(since=until_unix_nano)
        self._has_news, self._left_out = len(due) > len(told), 0
        horizon = until_unix_nano - FORGET_NS
        self._kept = {key: kept for key, kept in self._kept.items() if kept.last_seen > horizon}
        return report

    @property
    def has_news(self) -> bool:
        """Whether a report now would tell of a socket or of a verdict that is not reported yet."""
        return self._has_news

    # --- what is remembered -----------------------------------------------------------------------------------------------

    def _is_decided(self, s: Socket) -> bool:
        kept = self._kept.get(s.key)
        return kept is not None and kept.judged.capture is not None and not _is_another(kept.judged.socket, s)

    def _with_memory(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, listened=self._listened)

    def _remember(self, look: Look, reading: Reading) -> None:
        snapshot = look.first
        self._listened |= {s.local_port for s in snapshot.sockets if s.protocol == "tcp" and s.state == "LISTEN"}
        period = self._period
        if period.since is None:
            period.since = look.at_unix_nano
        period.until = look.at_unix_nano
        period.samples += 1
        period.proxy_found |= reading.proxy_found
        period.addresses |= {a for a in snapshot.addresses if not a.startswith(("127.", "fe80:")) and a != "::1"}

    def _see(self, judged: Judged, now: int, *, is_bypassing: bool = False) -> None:
        if is_bypassing:
            judged = replace(judged, capture="bypassed")
        kept = self._kept.get(judged.socket.key)
        if kept is None and len(self._kept) >= MAX_KEPT:
            self._left_out += 1
            return
        if kept is None or _is_another(kept.judged.socket, judged.socket):
            self._kept[judged.socket.key] = _Kept(judged, now, now, _attributes(judged.socket))
            self._has_news = True
            return
        kept.last_seen = now
        merged = _merged(kept.judged, judged)
        if _told(merged) != _told(kept.judged):
            kept.is_new = self._has_news = True
        kept.judged = merged

    def _see_time_wait(self, look: Look) -> None:
        """Sockets in TIME_WAIT, which began it up to a minute ago: the kernel's timer says when."""
        everything = replace(look.first, sockets=look.first.sockets + (look.time_wait or ()))
        judged = {j.socket.key: j for j in read(self._with_memory(everything), self._proxy).judged}
        for s in look.time_wait or ():
            found = judged.get(s.key)
            if found is None:
                continue
            known = s.key in self._kept
            self._see(found, look.at_unix_nano)
            kept = self._kept.get(s.key)
            if kept is not None and not known:
                kept.first_seen = min(look.at_unix_nano, closed_unix_nano(s, look.at_unix_nano))

    # --- rows ---------------------------------------------------------------------------------------------------------------

    def _is_due(self, kept: _Kept, now: int) -> bool:
        if kept.is_new:
            return True
        is_going_on = kept.last_seen > kept.reported_at and kept.judged.socket.state != "TIME_WAIT"
        return is_going_on and now - kept.reported_at >= ALIVE_EVERY_NS

    def _row(self, kept: _Kept) -> dict[str, Any]:
        s = kept.judged.socket
        is_listening = s.state == "LISTEN"
        return {
            "record_id": record_id(self._identity.source, s, kept.first_seen),
            "protocol": s.protocol,
            "direction": kept.judged.direction,
            "local_address": s.local_address,
            "local_port": s.local_port,
            "remote_address": None if is_listening else s.remote_address,
            "remote_port": None if is_listening else s.remote_port,
            "state": s.state,
            "capture": kept.judged.capture,
            "proxy_port": kept.judged.proxy_port,
            "uid": s.uid,
            "first_seen_unix_nano": kept.first_seen,
            "last_seen_unix_nano": kept.last_seen,
            "attributes": kept.attributes,
        }

    def _watch_row(self, until: int) -> dict[str, Any]:
        period = self._period
        return {
            "addresses": sorted(period.addresses),
            "since_unix_nano": until if period.since is None else period.since,
            "until_unix_nano": max(until, period.since or until),
            "interval_ns": self._interval_ns,
            "samples": period.samples,
            "proxy_found": period.proxy_found,
        }


def closed_unix_nano(s: Socket, now: int) -> int:
    """When a socket in TIME_WAIT began it, to a few ms; now, where the timer says nothing that can be."""
    rest = s.expires_ms
    return now - (TIME_WAIT_MS - rest) * NS_PER_MS if 0 < rest <= TIME_WAIT_MS else now


def record_id(source: str, s: Socket, first_seen: int) -> int:
    """The row's id: the same in every report of one socket, also of a witness that was started again, where cookies are known."""
    own = f"first={first_seen}" if s.cookie is None else f"cookie={s.cookie}"
    ends = f"{s.protocol}|{s.local_address}|{s.local_port}|{s.remote_address}|{s.remote_port}"
    return int.from_bytes(hashlib.blake2b(f"{source}|{own}|{ends}".encode(), digest_size=8).digest(), "big")


def _merged(old: Judged, new: Judged) -> Judged:
    """The newer state with the verdict that stands: captured once is captured for good, and what was decided is not forgotten."""
    owner = new.socket if new.socket.uid is not None else replace(new.socket, uid=old.socket.uid)
    stands = new if _rank(new) >= _rank(old) else old
    return replace(
        new,
        socket=owner,
        capture=stands.capture,
        proxy_port=stands.proxy_port,
        direction=new.direction or old.direction,
    )


def _is_another(old: Socket, new: Socket) -> bool:
    """Whether a port has been used again: without cookies, a connection that ended and is open again is another one."""
    return new.cookie is None and old.state in _ENDED and new.state not in _ENDED


def _rank(judged: Judged) -> int:
    match judged.capture:
        case None:
            return 0
        case "captured" | "not_mesh":
            return 2
        case _:
            return 1


def _told(judged: Judged) -> tuple[object, ...]:
    return judged.socket.state, judged.capture, judged.proxy_port, judged.direction


def _attributes(s: Socket) -> dict[str, str]:
    return {} if s.cgroup_id is None else {"cgroup_id": str(s.cgroup_id)}

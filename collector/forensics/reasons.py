"""What speaks against a candidate, in a sentence with the numbers. Pure."""

from typing import Final

from collector.forensics.causes import milliseconds
from collector.forensics.ranking import Candidate, File
from collector.forensics.rises import MOSTLY_RETRIES, MoreCalls, Rise
from collector.forensics.troubles import TroubleRise

PARTS: Final = 3
"""So many pieces of evidence are told at most."""

NOTHING: Final = "nothing rose, failed or stopped early here beyond chance"


def reason(candidate: Candidate) -> str:
    """The candidate's strongest evidence first."""
    parts = [*_times(candidate.file), *_waits(candidate.file), *_troubles(candidate.file)]
    told = [text for _, text in sorted(parts, key=lambda part: -part[0])[:PARTS]]
    far = max(candidate.file.far_ends, key=lambda rise: rise.excess_ns, default=None)
    if not told and far is not None:
        return f"the other end of a slower hop: {_hop(far, 1)}"
    return "; ".join(told) if told else NOTHING


def _times(file: File) -> list[tuple[float, str]]:
    """What took longer, each with its part of the time that the unit adds."""
    whole = max(file.excess_ns, 1.0)
    own = max((r for r in file.own if r.excess_ns > 0), key=lambda r: r.excess_ns, default=None)
    hop = max((r for r in file.hops if r.excess_ns > 0), key=lambda r: r.excess_ns, default=None)
    calls = max(file.calls, key=lambda c: c.excess_ns, default=None)
    found = []
    if own is not None:
        found.append((sum(r.excess_ns for r in file.own) / whole, _own(own)))
    if hop is not None:
        found.append((sum(r.excess_ns for r in file.hops) / whole, _hop(hop, len(file.hops))))
    if calls is not None:
        found.append((sum(c.excess_ns for c in file.calls) / whole, _calls(calls)))
    return found


def _own(rise: Rise) -> str:
    place = rise.place
    figures = f"{milliseconds(rise.during_ns)} instead of {milliseconds(rise.before_ns)} a call ({rise.calls} calls)"
    if place.kind == "exit":
        return f"{place.operation} waits for {place.destination} {figures}"
    return f"{place.operation} itself takes {figures}"


def _hop(rise: Rise, count: int) -> str:
    place = rise.place
    also = f", and {count - 1} more of its hops" if count > 1 else ""
    return (
        f"between {place.caller} and {place.service} {place.operation} (network, proxies, queues) pass "
        f"{milliseconds(rise.during_ns)} instead of {milliseconds(rise.before_ns)} ({rise.calls} calls{also})"
    )


def _calls(more: MoreCalls) -> str:
    what = "retries" if more.retries >= MOSTLY_RETRIES else "calls"
    return f"{more.caller} {what} {more.callee} {more.operation} {more.during:.1f} instead of {more.before:.1f} times"


def _waits(file: File) -> list[tuple[float, str]]:
    return [(1 - wait.before_ns / max(wait.during_ns, 1.0), _wait(wait)) for wait in file.waits if wait.excess_ns > 0]


def _wait(wait: Rise) -> str:
    return (
        f"messages from {wait.place.caller} wait {milliseconds(wait.during_ns)} instead of {milliseconds(wait.before_ns)} "
        f"(beyond the shortest wait of the baseline) for {wait.place.operation}"
    )


def _troubles(file: File) -> list[tuple[float, str]]:
    return [(t.beyond / t.touched, _trouble(t)) for t in file.troubles]


def _trouble(rise: TroubleRise) -> str:
    operation = rise.trouble.operation
    told = {
        "error": f"{operation} fails first",
        "unanswered": f"no span answers the calls to {operation}",
        "stopped": f"{operation} stops before calls that it used to make",
    }[rise.trouble.kind]
    return f"{told} in {rise.during:.1%} of the requests, {rise.before:.1%} before"

"""Linux's connection tracking as text: `conntrack -L`, `-E`, with `-o timestamp,extended,id`, and /proc/net/nf_conntrack.

    tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=45678 dport=443 src=10.0.0.2 dst=10.0.0.1 sport=443 dport=45678 [ASSURED] mark=0 use=1
    [1517422326.539915]	    [NEW] tcp      6 120 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=45678 dport=443 [UNREPLIED] src=…

The first addresses are what was dialled, the second ones from where the answer is expected: they differ where the connection was
redirected (`attributes["reply.src"]`, `["reply.sport"]`; Istio's outbound proxy is port 15001). Counters need nf_conntrack_acct.

A line has a time with `-o timestamp`, an age with nf_conntrack_timestamp (`delta-time`); else the time is when the table was
seen: the file's own time, or now for lines that are being followed. `attributes.time` says which. Source: conntrack-tools.
"""

import re
from typing import Final

from collector.errors import DecodeError
from collector.witnesses.values import NS_PER_S, Row, address, attributes_of, count, epoch_ns, flow_row, port

_STAMP: Final = re.compile(r"\[(\d{1,10}(?:\.\d{1,9})?)\s*\]\s*", re.ASCII)
_EVENT: Final = re.compile(r"\[(NEW|UPDATE|DESTROY)\]\s*", re.ASCII)
_FLAG: Final = re.compile(r"\[([A-Z_]+)\]", re.ASCII)

_TUPLE_KEYS: Final = frozenset({"src", "dst", "sport", "dport", "packets", "bytes", "type", "code", "id"})
_FAMILIES: Final = frozenset({"ipv4", "ipv6"})


def conntrack_row(text: str, seen_unix_nano: int) -> Row | None:
    """The row of one line, without what its file says; None for conntrack's own summary. Raises DecodeError.

    `seen_unix_nano` is when the table was seen, for lines that do not say it.
    """
    if text.startswith("conntrack v"):
        return None
    stamp, rest = _taken(_STAMP, text)
    event, rest = _taken(_EVENT, rest)
    words = rest.split()
    if words and words[0] in _FAMILIES:
        words = words[2:]
    if len(words) < 2 or not words[1].isdigit():
        raise DecodeError("not a line of conntrack: no protocol with its number")
    first, reply, others, flags, plain = _parts(words[2:])
    source, destination = address(first.get("src")), address(first.get("dst"))
    if source is None or destination is None:
        raise DecodeError("no src= or no dst= that is an address")
    timeout, state = _timeout_and_state(plain)
    start, how = _start(stamp, others.pop("delta-time", None), seen_unix_nano)
    row = flow_row("conntrack")
    row |= {
        "start_time_unix_nano": start,
        "protocol": words[0].lower(),
        "source_address": source,
        "source_port": port(first.get("sport")),
        "destination_address": destination,
        "destination_port": port(first.get("dport")),
        "bytes_out": count(first.get("bytes")),
        "bytes_in": count(reply.get("bytes")),
        "packets_out": count(first.get("packets")),
        "packets_in": count(reply.get("packets")),
        "state": state or event,
        "attributes": attributes_of(
            {
                "event": event,
                "time": how,
                "timeout": timeout,
                "flags": ",".join(flags),
                **{key: first.get(key) for key in ("type", "code")},
                **{f"reply.{key}": reply.get(key) for key in ("src", "dst", "sport", "dport")},
                **others,
            }
        ),
    }
    return row


def _taken(pattern: re.Pattern[str], text: str) -> tuple[str | None, str]:
    match = pattern.match(text.lstrip())
    return (match[1], text.lstrip()[match.end() :]) if match else (None, text)


def _parts(words: list[str]) -> tuple[dict[str, str], dict[str, str], dict[str, object], list[str], list[str]]:
    """The tuple of who opened it, that of the answer, the other pairs, flags in brackets, and words before all of these."""
    first: dict[str, str] = {}
    reply: dict[str, str] = {}
    others: dict[str, object] = {}
    flags: list[str] = []
    plain: list[str] = []
    current = first
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair:
            flags += _FLAG.findall(word)
            if not word.startswith("[") and not first:
                plain.append(word)
        elif key == "src" and "src" in current:
            current = reply
            current[key] = value
        elif key in _TUPLE_KEYS and key not in current:
            current[key] = value
        else:
            others[key] = value
    if "id" in reply:  # `-o id` puts the entry's id behind both tuples
        others["id"] = reply.pop("id")
    return first, reply, others, flags, plain


def _timeout_and_state(plain: list[str]) -> tuple[str | None, str | None]:
    timeout = plain[0] if plain and plain[0].isdigit() else None
    words = plain[1:] if timeout is not None else plain
    return timeout, words[0] if words else None


def _start(stamp: str | None, age: object, seen: int) -> tuple[int, str]:
    """When it began, and how that is known."""
    if stamp is not None and (stamped := epoch_ns(stamp)) is not None:
        return stamped, "of the line"
    seconds = count(age)
    if seconds is not None and seconds * NS_PER_S <= seen:
        return seen - seconds * NS_PER_S, "when it began, by its age"
    return seen, "when it was seen"

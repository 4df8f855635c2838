"""Spans a second that are durable, beside a peer that receives and throws away: Rotel, in Rust, by turns with ours in one run.

Prints one JSON object. Ours is `provenance collect` on a real file: a request is acknowledged when it is durable. A turn ends when the
receiver has nothing left to do, and the next one's turn begins then; CPU is counted to that end, so that nobody leaves
work for later unpaid. At the end every span that was acknowledged is counted in the file. Load generator and receivers share the machine:
`client_cpu_us_per_span` says what the generator took of it.

    grpc           OTLP/gRPC, requests of 512 spans, 16 under way        http    the same over HTTP/1.1
    json           the same requests as OTLP/JSON                       small   OTLP/gRPC, requests of 10 spans, 64 under way
    half_rate      how long an acknowledgement takes at half of the rate that `grpc` measured
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.processes import Receiver, check_file, collector, cpu_seconds, memory_mb, rotel, send, work_folder


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent in one turn.

    Attributes:
        protocol: grpc, http or json (over HTTP).
        spans: In a request.
        clients: Requests under way at once.
        requests: In a turn.
    """

    protocol: str
    spans: int
    clients: int
    requests: int

    def warm_up(self) -> "Traffic":
        """A tenth of it."""
        return replace(self, requests=max(1, self.requests // 10))

    def quick(self) -> "Traffic":
        """As little as is enough to see that it works."""
        return replace(self, clients=4, requests=12)


TRAFFIC = {
    "grpc": Traffic("grpc", 512, 16, 2000),
    "http": Traffic("http", 512, 16, 1500),
    "json": Traffic("json", 512, 16, 400),
    "small": Traffic("grpc", 10, 64, 15_000),
}
HALF_RATE_SECONDS = 15.0
QUICK_SECONDS = 0.5


def turn(receiver: Receiver, traffic: Traffic) -> dict[str, Any]:
    """Send it all, wait until it is where it belongs, and say what that took."""
    before = cpu_seconds(receiver.pid)
    seen = send(receiver, **asdict(traffic))
    receiver.drain()
    return seen | {"cpu_us_per_span": (cpu_seconds(receiver.pid) - before) / seen["spans"] * 1e6}


def by_turns(receivers: Sequence[Receiver], traffic: Traffic, rounds: int) -> dict[str, Any]:
    """The medians of each receiver's turns, and the first one's rate in parts of the second's.

    Who begins changes from round to round.
    """
    for receiver in receivers:
        turn(receiver, traffic.warm_up())
    turns: dict[str, list[dict[str, Any]]] = {receiver.name: [] for receiver in receivers}
    for number in range(rounds):
        for receiver in receivers if number % 2 == 0 else reversed(receivers):
            turns[receiver.name].append(turn(receiver, traffic))
            print(
                f"{traffic.protocol}, {traffic.spans} spans: {receiver.name} {turns[receiver.name][-1]}",
                file=sys.stderr,
            )
    ours, peer = (summary(turns[receiver.name]) for receiver in receivers)
    ratios = [a["spans_per_s"] / b["spans_per_s"] for a, b in zip(*turns.values(), strict=True)]
    return {
        "inputs": asdict(traffic) | {"rounds": rounds, "bytes_per_span": turns["ours"][0]["bytes_per_span"]},
        "ours": ours,
        "rotel": peer,
        "ratio_of_medians": round(ours["spans_per_s"] / peer["spans_per_s"], 3),
        "ratio_by_round": [round(ratio, 3) for ratio in ratios],
    }


SHOWN = {
    "spans_per_s": 0,
    "cpu_us_per_span": 2,
    "client_cpu_us_per_span": 2,
    "ack_ms_p50": 1,
    "ack_ms_p99": 1,
    "refused_and_retried": 0,
}


def summary(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure, and each turn's rate."""
    medians = {name: round(statistics.median(t[name] for t in turns), digits or None) for name, digits in SHOWN.items()}
    return medians | {"spans_per_s_by_round": [t["spans_per_s"] for t in turns]}


def at_half_rate(receivers: Sequence[Receiver], spans_per_s: float, seconds: float) -> dict[str, Any]:
    """Acknowledgements at half of that rate, the same rate for everybody."""
    traffic = TRAFFIC["grpc"]
    rate = spans_per_s / 2
    requests = max(10, round(rate * seconds / traffic.spans))
    found: dict[str, Any] = {
        "inputs": {"protocol": "grpc", "spans": traffic.spans, "requests": requests, "rate_spans_per_s": round(rate)}
    }
    for receiver in receivers:
        seen = send(receiver, protocol="grpc", spans=traffic.spans, requests=requests, rate=rate)
        receiver.drain()
        found[receiver.name] = {name: seen[name] for name in ("ack_ms_p50", "ack_ms_p99", "ack_ms_max", "spans_per_s")}
    return found


def measure(only: str, rounds: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Everything, on one file."""
    report: dict[str, Any] = {}
    with collector(folder) as ours, rotel(folder) as peer:
        receivers = (ours, peer)
        for name in parts(only):
            report[name] = by_turns(receivers, TRAFFIC[name].quick() if quick else TRAFFIC[name], rounds)
            report[name]["our_memory_mb"] = memory_mb(ours.pid)  # the peak, VmHWM, is that of all parts so far
        our_grpc = report["grpc"]["ours"]["spans_per_s"]
        for name in ("http", "json"):
            if name in report:
                report[name]["of_our_grpc"] = round(report[name]["ours"]["spans_per_s"] / our_grpc, 3)
        if only in {"", "half_rate"}:
            report["half_rate"] = at_half_rate(receivers, our_grpc, QUICK_SECONDS if quick else HALF_RATE_SECONDS)
        report["memory_mb"] = {receiver.name: memory_mb(receiver.pid) for receiver in receivers}
    report["spans_in_the_file"] = {"acknowledged": ours.sent_spans, "stored": check_file(ours)}
    return report


def parts(only: str) -> list[str]:
    """What is measured by turns; gRPC always, since the others are told in parts of it."""
    return [name for name in TRAFFIC if only in {"", name} or name == "grpc"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="grpc and this part: http, json, small or half_rate")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured (default: the temporary one)")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    options = parser.parse_args()
    if options.only not in {"", *TRAFFIC, "half_rate"}:
        parser.error(f"--only {options.only}: expected one of {', '.join([*TRAFFIC, 'half_rate'])}")
    with work_folder(options.folder) as folder:
        rounds = 1 if options.quick else options.rounds
        print(json.dumps(measure(options.only, rounds, folder, quick=options.quick), indent=2))


if __name__ == "__main__":
    main()

"""The attack campaign: everything hostile that we know, against a real collector that a good client goes on using.

    python -m tests.campaigns.attack [--only TEXT] [--list] [--out FILE]

The good client sends a span every 100 ms, over gRPC and HTTP in turn; each must be found. Of each attack: the peak of the
process's resident memory, how long a good request takes afterwards on connections of its own, whether an answer shows a
traceback, whether the process survived. Prints a JSON table; exits with 1 when a goal was missed.
"""

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from tests.campaigns import attacks, questions
from tests.campaigns.attacks import Attack, Target
from tests.campaigns.clients import Post, over_grpc, over_http
from tests.campaigns.ledger import Ledger
from tests.campaigns.process import CampaignError, Collector, descriptors, end_all, memory_mb, reset_peak, wait_until

Way = Callable[[Collector], AbstractContextManager[Post]]

PEAK_MB = 500.0
ANSWER_S = 1.0
"""The goals."""

EVERY_S = 0.1
PATIENCE_S = 30.0
VISIBLE_S = 10.0
FILES = 20_000
SETTLED_MB = 300.0
SETTLE_S = 15.0
"""How long, and until when, to wait before the next attack: DuckDB keeps a query's blocks for ten seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one attack did.

    Attributes:
        before_mb: Resident memory when it began, and
        peak_mb: its peak until good requests were answered again.
        answered_s: Of the slower one of two good requests after it, over gRPC and HTTP.
        good_spans: Sent by the good client meanwhile, and
        good_slowest_s: the longest wait for an acknowledgement, with
        good_again: how often it was told, or had, to send again.
        lost: Good spans that were acknowledged and are not found.
        answers: What the attack was answered, by status.
        leaks: Answers with a traceback.
        logged: Tracebacks in the collector's own log: defects, though nobody outside saw them.
        error: Why the attack or the collector ended early.
    """

    attack: str
    seconds: float
    before_mb: float
    peak_mb: float
    answered_s: float
    good_spans: int
    good_slowest_s: float
    good_again: int
    lost: int
    survived: bool
    answers: dict[str, int]
    leaks: list[str]
    logged: list[str]
    descriptors: int
    error: str = ""

    @property
    def misses(self) -> list[str]:
        """The goals that it missed."""
        wrong = {
            f"peak of {self.peak_mb:.0f} MB": self.peak_mb > PEAK_MB,
            f"answers after {self.answered_s:.1f} s": self.answered_s > ANSWER_S,
            "traceback to a client": bool(self.leaks),
            "the process died": not self.survived,
            f"{self.lost} acknowledged spans lost": self.lost > 0,
            self.error: bool(self.error),
        }
        return [miss for miss, is_so in wrong.items() if is_so]


class GoodClient:
    """Sends a span every tenth of a second, over gRPC and HTTP in turn, each until it is acknowledged."""

    def __init__(self, collector: Collector, seed: int) -> None:
        self._collector = collector
        self._ledger = Ledger(seed, max_spans=1)
        self._lock = threading.Lock()
        self._acknowledged: set[str] = set()
        self._slowest = 0.0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(way, number), daemon=True)
            for number, way in enumerate((over_grpc, over_http))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """After the requests that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def figures(self) -> tuple[int, int, float]:
        """Acknowledged and sent again since the beginning; the slowest since it was last asked for."""
        with self._lock:
            slowest, self._slowest = self._slowest, 0.0
            return len(self._acknowledged), self._ledger.resent, slowest

    @property
    def problems(self) -> list[str]:
        return self._ledger.problems

    def fresh(self) -> float:
        """Seconds until a request on a new connection is acknowledged, by each protocol; the slower one."""
        return max(self._one(way) for way in (over_grpc, over_http))

    def _one(self, way: Way) -> float:
        with way(self._collector) as post:
            return self._send(post)

    def _run(self, way: Way, number: int) -> None:
        with way(self._collector) as post:
            self._stop.wait(number * EVERY_S)
            due = time.monotonic()
            while not self._stop.is_set():
                self._send(post)
                due = max(due + EVERY_S * len(self._threads), time.monotonic())
                self._stop.wait(max(0.0, due - time.monotonic()))

    def _send(self, post: Post) -> float:
        number, payload = self._ledger.next_request()
        begun = time.monotonic()
        while (outcome := post(payload))[0] == "again" and time.monotonic() - begun < PATIENCE_S:
            self._ledger.sent_again()
            time.sleep(EVERY_S / 2)
        seconds = time.monotonic() - begun
        with self._lock:
            self._slowest = max(self._slowest, seconds)
            if outcome[0] == "acknowledged":
                self._acknowledged.add(f"{number}/0")
        if outcome[0] != "acknowledged":
            self._ledger.complain(f"good span {number}: {outcome}")
        return seconds

    def lost(self) -> int:
        """Acknowledged spans that the read API does not find, once they had time to become visible."""
        with self._lock:
            wanted = set(self._acknowledged)
        deadline = time.monotonic() + VISIBLE_S
        while missing := wanted - self._found():
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return len(missing)

    def _found(self) -> set[str]:
        import pyarrow as pa

        sql = "SELECT DISTINCT name FROM spans WHERE attributes['campaign.span'] = name"
        with suppress(httpx.HTTPError):
            answer = httpx.post(f"{self._collector.url}/api/v1/query", json={"sql": sql}, timeout=PATIENCE_S)
            if answer.status_code == 200:
                return set(pa.ipc.open_stream(answer.content).read_all().column(0).to_pylist())
        return set()


class Campaign:
    """One collector and one good client; attacks come one after the other."""

    def __init__(self, collector: Collector, *, seconds: float, seed: int) -> None:
        self._collector = collector
        self._seconds = seconds
        self._seed = seed
        collector.start()
        self._client = GoodClient(collector, seed)
        self._client.start()

    def run(self, name: str, attack: Attack) -> Row:
        """One attack and what came of it."""
        collector, client = self._collector, self._client
        _settle(collector)
        said = collector.said.stat().st_size
        reset_peak(collector.pid)
        before_mb, _ = memory_mb(collector.pid)
        acknowledged, again, _ = client.figures()
        target = Target(collector.grpc_port, collector.http_port, self._seconds, self._seed)
        begun, error = time.monotonic(), ""
        try:
            attack(target)
        except Exception as failure:  # noqa: BLE001 an attack that fails is a row of the table
            error = f"the attack failed: {failure!r}"
        seconds = time.monotonic() - begun
        answered_s = client.fresh()
        survived = collector.is_alive
        peak_mb = memory_mb(collector.pid)[1] if survived else 0.0
        files = descriptors(collector.pid) if survived else 0
        if not survived:
            collector.start()
        acknowledged_after, again_after, slowest = client.figures()
        return Row(
            name,
            round(seconds, 1),
            before_mb,
            peak_mb,
            round(answered_s, 2),
            acknowledged_after - acknowledged,
            round(slowest, 2),
            again_after - again,
            client.lost(),
            survived,
            dict(target.answers),
            target.leaks[:3],
            self._tracebacks(said),
            files,
            error,
        )

    def finish(self) -> list[str]:
        """Stop both; what the good client met that it must not."""
        self._client.stop()
        code = self._collector.stop()
        return [*self._client.problems, *([f"exit code {code} after SIGTERM"] if code else [])]

    def _tracebacks(self, since: int) -> list[str]:
        """The last line of each traceback that was logged since then, counted."""
        with self._collector.said.open("rb") as file:
            file.seek(since)
            text = file.read().decode("utf-8", "replace")
        found: Counter[str] = Counter()
        for part in text.split("Traceback (most recent call last)")[1:]:
            last = next((line for line in part.splitlines()[1:] if line and not line.startswith((" ", "\t"))), "?")
            found[last[:200]] += 1
        return [f"{count} x {line}" for line, count in found.items()]


def _settle(collector: Collector) -> None:
    with suppress(CampaignError):
        wait_until(lambda: memory_mb(collector.pid)[0] < SETTLED_MB, "memory to be given back", SETTLE_S, EVERY_S)


def every_attack() -> dict[str, Attack]:
    """All of them, by name."""
    return attacks.connections() | questions.questions() | questions.logs() | attacks.bodies()


def run(names: list[str], directory: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run the attacks; the report."""
    known = every_attack()
    collector = Collector(directory / "attacked", tuple(options.collect))
    collector.directory.mkdir()
    rows: list[Row] = []
    campaign = Campaign(collector, seconds=options.seconds, seed=options.seed)
    for name in names:
        rows.append(campaign.run(name, known[name]))
        say(rows[-1])
    problems = campaign.finish()
    missed = {row.attack: row.misses for row in rows if row.misses}
    return {
        "clean": not missed and not problems,
        "attacks": len(rows),
        "peak_mb": max((row.peak_mb for row in rows), default=0),
        "answered_s": max((row.answered_s for row in rows), default=0),
        "good_spans": sum(row.good_spans for row in rows),
        "lost": rows[-1].lost if rows else 0,
        "missed": missed,
        "problems": problems,
        "rows": [asdict(row) for row in rows],
    }


def allow_files() -> None:
    """Let this process, and the collector that it starts, have thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, FILES), hard), hard))


def say(row: Row) -> None:
    """A line of progress."""
    what = f"{row.peak_mb:6.0f} MB  {row.answered_s:5.2f} s  {row.good_slowest_s:5.2f} s  {row.attack}"
    wrong = f"   MISSED: {', '.join(row.misses)}" if row.misses else ""
    logged = f"   LOGGED: {row.logged}" if row.logged else ""
    print(f"{what}  {row.answers}{wrong}{logged}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        prog="attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the attacks' names, and exit")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of an attack that could go on for ever (default: 5)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument(
        "--collect", action="append", default=[], help="a further argument of collect: --collect=--memory=256MiB"
    )
    parser.add_argument("--directory", type=Path, help="where the file is made (default: a temporary directory)")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    names = [name for name in every_attack() if options.only in name]
    if options.list:
        print("\n".join(names))
        return 0
    allow_files()
    with tempfile.TemporaryDirectory(prefix="attack-", dir=options.directory) as directory:
        try:
            report = run(names, Path(directory), options)
        except CampaignError as error:
            report = {"clean": False, "problems": [str(error)]}
        finally:
            end_all()
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if report["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())

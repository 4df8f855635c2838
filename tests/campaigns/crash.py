"""The crash campaign: kill -9 a collector at random moments under load, again and again, and count what is lost or there twice.

    python -m tests.campaigns.crash [--kills 100] [--seed 1] [--out FILE]

Real clients send requests of 1 to 512 spans over gRPC and HTTP and repeat those that are not acknowledged. Prints one JSON
object; exits with 1 unless every figure that should be zero is.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from collector.errors import StoreError
from tests.campaigns.clients import Clients
from tests.campaigns.ledger import Ledger, check_file
from tests.campaigns.process import POLL_S, CampaignError, Collector, end_all, wait_until

START_S = 1.5
"""About how long a start takes; corrected by what is measured."""

CHECKPOINT_WAIT_S = 8.0

FULL_DISK_BYTES = 160 * 1024 * 1024


@dataclass(slots=True)
class Findings:
    """What went wrong, and what was done.

    Attributes:
        kills: By the moment that was chosen.
        checks: Files that were opened and compared with what was sent.
        defects: Of all checks, by kind; a span's defect counts again in each later check of its file.
        unopened: Files that could not be opened, and why.
        unclean: Graceful stops that left a journal or had another exit code than 0.
        problems: Answers to good requests that must not be, and parts that could not go on.
        start_seconds: Of every start after a kill.
        acknowledged_spans: Of all files at their end, and
        stored_spans: what they hold.
        notes: Figures of single parts.
    """

    kills: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    defects: Counter[str] = field(default_factory=Counter)
    unopened: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    start_seconds: list[float] = field(default_factory=list)
    acknowledged_spans: int = 0
    stored_spans: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def check(self, path: Path, known: pa.Table, *, is_last: bool = False) -> None:
        """Compare a closed file with what was known of the requests at some moment before it was closed."""
        self.checks += 1
        try:
            verdict = check_file(path, known)
        except StoreError as error:
            self.unopened.append(str(error))
            return
        if is_last:
            self.acknowledged_spans += verdict.acknowledged_spans
            self.stored_spans += verdict.stored_spans
        self.defects.update(verdict.defects)

    @property
    def is_clean(self) -> bool:
        return not (self.defects or self.unopened or self.unclean or self.problems)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        starts = sorted(self.start_seconds)
        return {
            "clean": self.is_clean,
            "kills": self.kills.total(),
            "kills_by_moment": dict(self.kills),
            "checks": self.checks,
            "acknowledged_spans": self.acknowledged_spans,
            "stored_spans": self.stored_spans,
            "lost_spans": self.defects["lost_spans"],
            "duplicated_spans": self.defects["duplicated_spans"],
            "defects": {kind: count for kind, count in self.defects.items() if count},
            "files_that_fail_to_open": self.unopened,
            "unclean_stops": self.unclean,
            "problems": self.problems,
            "restart_seconds": {"p50": starts[len(starts) // 2], "max": starts[-1]} if starts else {},
            **self.notes,
        }


# --- moments --------------------------------------------------------------------------------------------------------------


def under_load(collector: Collector, random_: random.Random) -> None:
    """At any moment."""
    time.sleep(random_.uniform(0.02, 2.0))
    collector.kill()


def at_checkpoint(collector: Collector, random_: random.Random) -> None:
    """When the WAL goes into the file, or when it did not come to that in a while."""
    with suppress(CampaignError):
        _wait_for_checkpoint(collector, CHECKPOINT_WAIT_S)
    time.sleep(random_.uniform(0, 0.03))
    collector.kill()


def at_shutdown(collector: Collector, random_: random.Random) -> None:
    """Some time after SIGTERM."""
    collector.terminate()
    time.sleep(random_.uniform(0, 0.8))
    collector.kill()


def at_last_checkpoint(collector: Collector, random_: random.Random) -> None:
    """In the checkpoint at the end."""
    collector.terminate()
    with suppress(CampaignError):
        _wait_for_checkpoint(collector, 2.0)
    time.sleep(random_.uniform(0, 0.02))
    collector.kill()


def after_start(collector: Collector, random_: random.Random) -> None:
    """Right after the ports are open, when every client sends what it has kept."""
    time.sleep(random_.uniform(0, 0.1))
    collector.kill()


MOMENTS: dict[str, tuple[int, Callable[[Collector, random.Random], None]]] = {
    "load": (8, under_load),
    "checkpoint": (2, at_checkpoint),
    "shutdown": (3, at_shutdown),
    "last checkpoint": (2, at_last_checkpoint),
    "after start": (2, after_start),
}
"""By name: how often, relatively, and what happens until the process is dead."""


def _wait_for_checkpoint(collector: Collector, deadline_s: float) -> None:
    sizes = [0]
    beside = collector.db.with_name(collector.db.name + ".wal.checkpoint")

    def begun() -> bool:
        sizes.append(collector.wal.stat().st_size if collector.wal.exists() else 0)
        return beside.exists() or sizes[-1] < sizes.pop(0)

    wait_until(begun, "a checkpoint", deadline_s, POLL_S)


# --- the campaign ---------------------------------------------------------------------------------------------------------


class Campaign:
    """One file through many lives."""

    def __init__(self, directory: Path, findings: Findings, *, seed: int, arguments: tuple[str, ...] = ()) -> None:
        self.random = random.Random(seed)
        self.findings = findings
        self.ledger = Ledger(seed)
        self.directory = directory
        self.collector = Collector(directory / "lives", arguments)
        self.collector.directory.mkdir()

    def run(self, kills: int, *, check_every: int, pause_s: float) -> None:
        """Kill it so often, with a check every so many kills and one at the end."""
        clients = Clients(self.collector, self.ledger, seed=self.random.randrange(1 << 30), pause_s=pause_s)
        wanted = self.findings.kills.total() + kills
        checked = self.findings.kills.total()
        while self.findings.kills.total() < wanted:
            self._start(wanted)
            name = self.random.choices(list(MOMENTS), [weight for weight, _ in MOMENTS.values()])[0]
            MOMENTS[name][1](self.collector, self.random)
            self.findings.kills[name] += 1
            say(
                f"kill {self.findings.kills.total()}/{wanted} ({name}), {self.ledger.acknowledged} requests acknowledged"
            )
            if self.findings.kills.total() - checked >= check_every:
                checked = self.findings.kills.total()
                self._start(wanted)
                self._copy_and_check()
                self.stop_and_check()
        self.collector.start()
        clients.finish()
        self.stop_and_check(is_last=True)
        self.findings.problems += self.ledger.problems
        self.findings.notes["requests"] = {
            "sent": self.ledger.table().num_rows,
            "acknowledged": self.ledger.acknowledged,
            "sent_again": self.ledger.resent,
        }

    def stop_and_check(self, *, is_last: bool = False) -> None:
        """A graceful stop: exit code 0, no journal left, and everything in the file."""
        stop_cleanly(self.collector, self.findings)
        self.findings.check(self.collector.db, self.ledger.table(), is_last=is_last)

    def _start(self, wanted: int) -> None:
        """Start it, and in every third life kill it meanwhile, once or more."""
        while self.findings.kills.total() + 1 < wanted and self.random.random() < 1 / 3:
            self.collector.spawn()
            time.sleep(self.random.uniform(0.3, 1.1) * self._usual_start())
            self.collector.kill()
            self.findings.kills["start"] += 1
        self.findings.start_seconds.append(round(self.collector.start(), 2))

    def _usual_start(self) -> float:
        last = self.findings.start_seconds[-5:]
        return sum(last) / len(last) if last else START_S

    def _copy_and_check(self) -> None:
        """What a power cut leaves: the files of one moment, the journal with half a record at its end."""
        time.sleep(self.random.uniform(0.1, 1.0))
        before = self.ledger.acknowledged_requests()
        number = self.findings.notes.setdefault("copies", 0) + 1
        self.findings.notes["copies"] = number
        copy = Collector(self.directory / f"copy{number}", self.collector.arguments)
        self.collector.snapshot(copy.directory)
        known = self.ledger.table(acknowledged=before)
        if segments := sorted(copy.journal.glob("*")):
            with segments[-1].open("ab") as segment:
                segment.write(self.random.randbytes(self.random.randrange(1, 5_000)))
        try:
            copy.start()
        except CampaignError as error:
            self.findings.unopened.append(f"a copy of a moment: {error}")
            return
        stop_cleanly(copy, self.findings)
        self.findings.check(copy.db, known)
        shutil.rmtree(copy.directory)


def stop_cleanly(collector: Collector, findings: Findings) -> None:
    """SIGTERM, and what must be true then."""
    code = collector.stop()
    left = sorted(path.name for path in (collector.journal, collector.wal) if path.exists())
    if code != 0 or left:
        detail = [f"{path.name}: {path.stat().st_size} bytes" for path in collector.journal.glob("*")]
        findings.unclean.append(f"exit code {code}, left {left} {detail}: {collector.last_words()}")


def births(directory: Path, findings: Findings, random_: random.Random, count: int) -> None:
    """Kill it while it makes its file; the next start must take what it finds."""
    for number in range(count):
        collector = Collector(directory / f"birth{number}")
        collector.directory.mkdir()
        collector.spawn()
        wait_until(lambda c=collector: c.db.exists() or not c.is_alive, "a new file", poll_s=POLL_S)  # type: ignore[misc]
        time.sleep(random_.choice((0, random_.uniform(0, 0.01), random_.uniform(0, 0.1))))
        collector.kill()
        findings.kills["birth"] += 1
        try:
            collector.start()
            stop_cleanly(collector, findings)
        except CampaignError as error:
            findings.unopened.append(f"a file that was just made: {error}")


# --- a disk that is full for a while --------------------------------------------------------------------------------------


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A filesystem of this size; raises CampaignError where none can be mounted."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CampaignError(f"no small filesystem here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def full_disk(directory: Path, findings: Findings, *, seed: int, rounds: int) -> None:
    """Fill the disk under a collector, also kill it then, and give the room back."""
    random_ = random.Random(seed)
    ledger = Ledger(seed)
    figures: dict[str, Any] = {
        "rounds": rounds,
        "refusals": Counter[str](),
        "seconds_to_go_on": [],
        "starts_refused": 0,
    }
    with small_disk(directory / "small", FULL_DISK_BYTES) as disk:
        collector = Collector(disk / "evidence")
        collector.directory.mkdir()
        collector.start()
        clients = Clients(collector, ledger, seed=seed, pause_s=0.1)
        for number in range(rounds):
            time.sleep(random_.uniform(0.2, 1.0))
            ballast = _fill(disk, random_.choice((0, 100_000, 1_000_000, 4_000_000)))
            _refused(clients, figures["refusals"])
            if number % 2:
                collector.kill()
                findings.kills["full disk"] += 1
                figures["starts_refused"] += not _starts(collector)
            ballast.unlink()
            if not collector.is_alive:
                collector.start()
            before = ledger.acknowledged
            figures["seconds_to_go_on"].append(
                round(wait_until(lambda b=before: ledger.acknowledged > b, "a full disk to be forgotten"), 2)  # type: ignore[misc]
            )
            say(f"full disk, round {number + 1}/{rounds}: {ledger.acknowledged} requests acknowledged")
        clients.finish()
        stop_cleanly(collector, findings)
        findings.check(collector.db, ledger.table(), is_last=True)
        findings.problems += ledger.problems
        figures["said"] = _complaints(collector.said)
    findings.notes["full_disk"] = figures


def _fill(disk: Path, leave_bytes: int) -> Path:
    """Take the room but for so much; what others write meanwhile fits or not."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            state = os.statvfs(disk)
            room = state.f_bavail * state.f_frsize - leave_bytes
            if room <= 0:
                return ballast
            with suppress(OSError):
                file.write(bytes(min(room, 1 << 20)))


def _refused(clients: Clients, seen: Counter[str]) -> None:
    """Wait until senders are told to wait."""
    clients.last_refusal = ""
    wait_until(lambda: clients.last_refusal != "", "a refusal on a full disk")
    seen[clients.last_refusal.partition(":")[0]] += 1


def _starts(collector: Collector) -> bool:
    """Whether it starts on a full disk; it may not, with a reason."""
    try:
        collector.start()
    except CampaignError:
        return False
    return True


def _complaints(said: Path) -> list[str]:
    lines = said.read_text(errors="replace").splitlines()
    return sorted({line[-160:] for line in lines if "No space" in line})[:10]


# --- the command ----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def run(directory: Path, options: argparse.Namespace) -> Findings:
    """All parts; a part that cannot go on is a problem of its own."""
    findings = Findings()
    main_part = Campaign(directory, findings, seed=options.seed)
    parts: list[Callable[[], None]] = [
        lambda: births(directory, findings, random.Random(options.seed), options.births),
        lambda: main_part.run(options.kills, check_every=options.check_every, pause_s=options.pause),
        lambda: full_disk(directory, findings, seed=options.seed, rounds=options.full_disks),
    ]
    for part in parts:
        try:
            part()
        except CampaignError as error:
            findings.problems.append(str(error))
        finally:
            end_all()
    return findings


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        prog="crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="kill -9 under load (default: 100)")
    parser.add_argument("--births", type=int, default=10, help="kills of a collector that makes its file (default: 10)")
    parser.add_argument("--full-disks", type=int, default=4, help="times that the disk is full (default: 4)")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument("--check-every", type=int, default=20, help="kills between two checks (default: 20)")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between a client's requests (default: 0.02)")
    parser.add_argument("--directory", type=Path, help="where the files are made (default: a temporary directory)")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-", dir=options.directory) as directory:
        findings = run(Path(directory), options)
    report = findings.report() | {"seed": options.seed, "seconds": round(time.monotonic() - begun)}
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if findings.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())

"""`python -m collector.lab` (make lab): build the mesh, play every way past it, grade the verdicts, remove everything."""

import argparse
import fcntl
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.commands.terminal import escape_lines
from collector.demo import signals
from collector.errors import CollectorError, ConfigError

if TYPE_CHECKING:
    import polars as pl

    from collector.lab.matrix import Result

EXIT_WRONG: Final = 1
EXIT_USAGE: Final = 2
LOCK: Final = Path("/run/provenance-lab.lock")
MIN_CALLS: Final = 50
_FOLDER: Final = "provenance-lab-"

EPILOG: Final = """\
Pods are network namespaces on a bridge; iptables redirects as istio-init does; each meshed pod has a real Envoy with mTLS, Istio's access
log and tracing; each pod has a socket witness. Between clean calls, every way past the mesh is played (see collector/lab/plan.py).
The result says, for each set of witnesses, how many calls of each way were found to bypass the mesh. docs/lab.md explains it.

exit codes: 0 no clean call was accused and no bypassing call was called meshed with all witnesses, 1 not so, or the lab failed,
            2 usage, or something that the lab needs is missing, 130 interrupted
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    Attributes:
        calls: Clean ones.
        odd_each: Calls of each other way.
        rate: Calls a second.
        seed: Of the script.
        format: table or json.
        out: A file that gets the JSON too.
        keep: Keep the evidence and the logs.
        all_only: Grade with all witnesses, and no smaller set.
    """

    calls: int
    odd_each: int
    rate: float
    seed: int
    format: str
    out: Path | None
    keep: bool
    all_only: bool


def main(argv: Sequence[str]) -> int:
    """Run the lab; returns the exit code."""
    options = parse(argv)
    try:
        with signals.raised():
            check()
            with _alone():
                return run(options)
    except signals.InterruptedBySignal as interruption:
        say(f"stopped by {interruption}")
        return interruption.exit_status
    except ConfigError as error:
        say(str(error))
        return EXIT_USAGE
    except CollectorError as error:
        say(str(error))
        return EXIT_WRONG


def parse(argv: Sequence[str]) -> Options:
    """The options; a usage error ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="make lab ARGS=…",
        description="A mesh in network namespaces, every way past it, and what can be proven with which witnesses.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=int, default=10_000, metavar="N", help="clean calls (default: 10000)")
    parser.add_argument(
        "--odd", type=int, metavar="N", help="calls of each other way (default: a fiftieth, at least 6)"
    )
    parser.add_argument("--rate", type=float, default=60.0, metavar="N", help="calls a second (default: 60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the script's random draws (default: 1)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON into this file too")
    parser.add_argument("--keep", action="store_true", help="keep the evidence, the logs and the configurations")
    parser.add_argument("--all-only", action="store_true", help="grade with all witnesses only: a third of the time")
    given = parser.parse_args(argv)
    if given.calls < MIN_CALLS or given.rate <= 0 or (given.odd is not None and given.odd < 1):
        parser.error(f"--calls is at least {MIN_CALLS}, --rate more than 0, --odd at least 1")
    odd = max(6, given.calls // 50) if given.odd is None else given.odd
    return Options(given.calls, odd, given.rate, given.seed, given.format, given.out, given.keep, given.all_only)


def check() -> None:
    """Raise ConfigError, which says what is missing and how to get it."""
    from collector.lab.network import check_kernel, missing, missing_message

    if sys.platform != "linux":
        raise ConfigError(f"the lab needs Linux: this is {sys.platform}")
    if os.geteuid() != 0:
        raise ConfigError("the lab needs root: it makes network namespaces; try: sudo make lab")
    if names := missing():
        raise ConfigError(missing_message(names))
    try:
        import cryptography  # noqa: F401
        import envoy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'the package {error.name!r} is not installed; try: pip install "mesh-provenance[all]"'
        ) from error
    check_kernel()


@contextmanager
def _alone() -> Iterator[None]:
    """One lab at a time on one machine: its network has fixed names. The kernel gives the lock back however we end.

    The file names the folder of the lab that runs: one that was killed left it behind, and it goes now.
    """
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another lab is running on this machine (lock: {LOCK})") from error
        left_behind = Path(LOCK.read_text())
        if left_behind.name.startswith(_FOLDER) and left_behind.is_dir():
            shutil.rmtree(left_behind)
        yield


def run(options: Options) -> int:
    """Build, play, grade, remove."""
    from collector.demo.processes import Children
    from collector.lab import running
    from collector.lab.matrix import WITNESSES, grade
    from collector.lab.network import network
    from collector.lab.plan import PODS, script

    directory = Path(tempfile.mkdtemp(prefix=_FOLDER))
    LOCK.write_text(str(directory))
    directory.chmod(0o755)  # root's; what the pods' users write there are files of their own
    keep = options.keep
    try:
        sets = ("all",) if options.all_only else tuple(WITNESSES)
        calls = script(options.calls, options.odd_each, options.seed)
        with network(PODS), Children(directory) as children:
            begun, started = time.monotonic(), datetime.now(UTC).isoformat()
            lab = running.start(directory, children)
            say(f"the lab is up after {time.monotonic() - begun:.1f} s: {len(PODS)} pods; {len(calls)} calls follow")
            truth = running.play(lab, calls, options.rate)
            say(f"played after {time.monotonic() - begun:.1f} s")
            running.end(lab)
        running.import_pods(lab, started)
        return _tell(grade(lab.database, truth, directory, sets), options, len(calls))
    except CollectorError:
        keep = True
        raise
    finally:
        LOCK.write_text("")
        if keep:
            say(f"evidence, logs and configurations: {directory}")
        else:
            shutil.rmtree(directory)


def _tell(result: "Result", options: Options, count: int) -> int:
    """Print the result of a script of `count` calls; returns the exit code."""
    document = json.dumps(result.document() | {"seed": options.seed, "script": count}, indent=2)
    if options.out is not None:
        options.out.write_text(document + "\n")
    print(document if options.format == "json" else tables(result.calls, result.connections, result.findings))
    for reason, times in result.failed.items():
        say(f"{times} calls got no answer: {reason}")
    say(f"clean calls accused: {result.accused}; bypassing calls called meshed with all witnesses: {result.missed}")
    return EXIT_WRONG if result.accused or result.missed else 0


def tables(*frames: "pl.DataFrame") -> str:
    """The frames one below the other, as people read them."""
    from collector.commands.output import write_frame

    stream = io.StringIO()
    for number, frame in enumerate(frames):
        if number:
            stream.write("\n")
        write_frame(frame, "table", stream)
    return stream.getvalue().rstrip("\n")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    print(f"lab: {escape_lines(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`provenance demo`: a small real mesh, planted incidents, and what the detectors make of it."""

import argparse
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from collector.client import open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.terminal import escape_lines
from collector.demo import report, signals, workbench
from collector.demo.incidents import Grade, Planted, grade
from collector.demo.plan import INCIDENTS, MIN_DURATION_SECONDS, Incident
from collector.demo.ports import Reservation
from collector.demo.processes import Children, DemoError
from collector.demo.resources import mesh_directory
from collector.demo.running import Mesh
from collector.demo.startup import make_plan, start
from collector.errors import CollectorError, ConfigError

EXIT_OK: Final = 0
EXIT_IMPERFECT: Final = 1
EXIT_USAGE: Final = 2

NARROW: Final = 80
WIDE: Final = 120
"""The width of the table, in columns: a terminal's own within these limits, `NARROW` elsewhere."""

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

EPILOG: Final = """\
The mesh: gateway (HTTP) calls checkout, pricing (gRPC) and inventory (HTTP); checkout calls inventory, pricing and payment;
payment now and then asks a card network outside, which the policy allows. Each service is a process with a real Envoy beside it.

The incidents, after a quiet baseline of 40 % of the duration:
  rogue    a program without middleware or sidecar calls payment's port
  bypass   checkout dials inventory around both sidecars for a part of its calls
  egress   inventory calls an address on no allow-list, every two seconds
  slow     pricing answers Quote 200 ms later

On a terminal the workbench opens on the running mesh, and leaving it stops everything. Otherwise, or with --headless, the mesh
runs for the duration, is searched, and the findings go to stdout.

exit codes: 0 every planted incident was found and nothing else, 1 not so (or the mesh failed), 2 usage, 130 interrupted
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for; `database` None: a new file in a temporary folder."""

    headless: bool
    format: str
    duration_seconds: float
    database: Path | None
    seed: int
    incidents: tuple[Incident, ...]
    keep: bool


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    options = parse(argv, terminal=sys.stdin.isatty() and sys.stdout.isatty())
    try:
        with signals.raised():
            return run(options)
    except signals.InterruptedBySignal as interruption:
        say(f"stopped by {interruption}")
        return interruption.exit_status
    except ConfigError as error:
        say(str(error))
        return EXIT_USAGE
    except CollectorError as error:
        say(str(error))
        return EXIT_IMPERFECT


def parse(argv: Sequence[str], *, terminal: bool) -> Options:
    """The options; a usage error ends the program with status 2, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="provenance demo",
        description="Start a small real mesh, plant incidents, find them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--headless", action="store_true", help="print findings instead of opening the workbench")
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="of the findings, with --headless (default: table)"
    )
    parser.add_argument(
        "--duration", type=duration, default=60.0, help="how long the load runs: 45s, 2m (default: 60s)"
    )
    parser.add_argument(
        "--db", type=Path, metavar="PATH", help="new file for the evidence (default: in a temporary folder)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="repeat the random draws of an earlier run")
    parser.add_argument(
        "--incidents", type=incidents, default=INCIDENTS, help="all, none, or a list: rogue,bypass,egress,slow"
    )
    parser.add_argument("--keep", action="store_true", help="keep the processes' logs and configurations")
    arguments = parser.parse_args(argv)
    return Options(
        headless=arguments.headless or not terminal,
        format=arguments.format,
        duration_seconds=arguments.duration,
        database=arguments.db,
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
        incidents=arguments.incidents,
        keep=arguments.keep,
    )


def duration(text: str) -> float:
    """`90`, `45s`, `1.5m`, `2h` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 45s, 2m or 1h")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds < MIN_DURATION_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text} is too short to tell an incident from a baseline; at least {MIN_DURATION_SECONDS:g}s"
        )
    return seconds


def incidents(text: str) -> tuple[Incident, ...]:
    """`all`, `none` or a comma-separated list, in the order of `INCIDENTS`."""
    if text in {"all", "none"}:
        return INCIDENTS if text == "all" else ()
    wanted = {part.strip() for part in text.split(",")}
    if unknown := sorted(wanted - set(INCIDENTS)):
        raise argparse.ArgumentTypeError(
            f"no incident {', '.join(map(repr, unknown))}; there are {', '.join(INCIDENTS)}, all, none"
        )
    return tuple(name for name in INCIDENTS if name in wanted)


def run(options: Options) -> int:
    """Prepare the folder, start the mesh, show it or grade it, stop it."""
    if sys.platform != "linux":
        raise ConfigError("the demo needs Linux: it uses several loopback addresses and ties its processes to itself")
    mesh_directory()  # say so before anything is made
    folder, database = prepare(options.database)
    work = folder / "mesh"
    work.mkdir()
    keep = options.keep
    try:
        with Reservation() as ports, Children(work) as children:
            plan = make_plan(
                ports, seed=options.seed, duration_seconds=options.duration_seconds, incidents=options.incidents
            )
            say(f"starting 5 services, 5 sidecars and a collector (seed {options.seed})")
            began = time.monotonic()
            mesh = start(plan, work, database, children)
            say(f"the mesh is up after {time.monotonic() - began:.1f} s; collector: {mesh.url}")
            status = headless(mesh, options, database) if options.headless else interactive(mesh)
    except DemoError:
        keep = True
        raise
    finally:
        clean_up(folder, work, database, keep=keep)
    return status


def prepare(wanted: Path | None) -> tuple[Path, Path]:
    """A new folder for this run, and the database's path, which names no file yet; ConfigError when it cannot be used."""
    if wanted is not None:
        database = wanted.expanduser().absolute()
        if not database.parent.is_dir():
            raise ConfigError(f"--db {wanted}: there is no directory {database.parent}")
        if database.exists() and (not database.is_file() or database.stat().st_size):
            raise ConfigError(
                f"--db {wanted}: it exists already, and the demo starts with new evidence; name a new file"
            )
        database.unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="provenance-demo-"))
    return folder, database if wanted is not None else folder / "evidence.duckdb"


def clean_up(folder: Path, work: Path, database: Path, *, keep: bool) -> None:
    """Remove what only served the run; the evidence stays, and so does everything with --keep or when the mesh failed."""
    if keep:
        say(f"logs and configurations: {work}")
    else:
        shutil.rmtree(work)
        if not any(folder.iterdir()):
            folder.rmdir()
    if database.exists():
        say(f"evidence: {database} (provenance tui {database})")


def headless(mesh: Mesh, options: Options, database: Path) -> int:
    """Run for the duration, end the traffic, search, grade, print."""
    # Now and not at the top: Ibis takes a second to import, and --help need not. Not later: its second would be in the load's time.
    from collector.forensics.scan import examine

    planted = mesh.begin()
    say_plan(planted)
    until = time.monotonic() + options.duration_seconds
    mesh.children.wait_until(lambda: time.monotonic() >= until, "the end of the load", options.duration_seconds * 2)
    say("stopping the load, waiting for the last evidence")
    source = open_source(mesh.url)
    try:
        counts = mesh.end(source)
        say(f"the load: {counts['requests']} requests, {counts['failed']} failed")
        result = examine(source.query)
    finally:
        source.close()
    for note in result.notes:
        say(note)
    graded = grade(planted, result.findings)
    print_result(graded, options, database, result.findings)
    return EXIT_OK if graded.ok else EXIT_IMPERFECT


def print_result(result: Grade, options: Options, database: Path, findings: pl.DataFrame) -> None:
    """Findings and verdicts in the chosen format: data on stdout, and what the format has no place for on stderr."""
    from collector.commands.scan import render_findings

    lines = report.verdict_lines(result, findings)
    match options.format:
        case "json":
            print(report.document(result, findings, str(database)))
        case "table":
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else NARROW
            print(*render_findings(findings, min(max(columns, NARROW), WIDE)), "", *lines, sep="\n")
            return
        case _:
            write_frame(findings, options.format, sys.stdout)
    for line in lines:
        say(line)


def interactive(mesh: Mesh) -> int:
    """The workbench on the running mesh; returns when the user leaves it."""
    planted = mesh.begin()
    say_plan(planted)
    status = workbench.run(mesh.url, mesh.children.check)
    mesh.children.check()
    return status


def say_plan(planted: Sequence[Planted]) -> None:
    """When the incidents begin."""
    for incident in planted:
        say(f"{incident.name} begins at {report.clock(incident.planted_at_unix_nano)}: {incident.signature.summary}")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for findings."""
    print(f"demo: {escape_lines(text)}", file=sys.stderr, flush=True)

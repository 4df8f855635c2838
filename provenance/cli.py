"""The `provenance` command: a table of subcommands, each imported only when it is called.

Exit codes, for every subcommand: 0 clean, 1 findings, 2 usage, 3 unreachable, 70 a defect of ours, 130 interrupted.
"""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple


class Command(NamedTuple):
    """One subcommand: the module whose `main(argv) -> int` runs it, the extra that installs it, and its line in the help."""

    module: str
    extra: str
    summary: str


COMMANDS: Final[dict[str, Command]] = {
    "demo": Command(
        "collector.commands.demo", "demo", "start a small real mesh with four planted incidents, and find them"
    ),
    "collect": Command("collector.commands.collect", "collector", "receive OTLP and access logs into a DuckDB file"),
    "witness": Command(
        "collector.commands.witness", "collector", "watch a pod's sockets: who is connected past the proxy"
    ),
    "scan": Command("collector.commands.scan", "collector", "print the findings of a file or a collector"),
    "watch": Command(
        "collector.commands.watch", "collector", "tell findings as they happen: Alertmanager, Slack, a program"
    ),
    "rank": Command(
        "collector.commands.rank",
        "collector",
        "rank what made an incident's requests slow or broken, against a baseline",
    ),
    "cost": Command("collector.commands.cost", "collector", "what the mesh itself costs: proxies and network, by edge"),
    "tui": Command("tui.command", "tui", "open the workbench on a file or a collector"),
    "calls": Command(
        "collector.commands.calls",
        "collector",
        "the verdict of every call: meshed, bypassed (and how), or unknown (and why)",
    ),
    "sql": Command("collector.commands.sql", "collector", "run one SELECT on a file or a collector"),
    "import": Command(
        "collector.commands.import_",
        "collector",
        "read spans, access logs, flows and lists of pods from files into a DuckDB file",
    ),
    "export": Command("collector.commands.export", "collector", "write evidence as OTLP or Parquet"),
    "verify": Command(
        "collector.commands.verify",
        "collector",
        "judge every call's stamp: who really made it, and whether it arrived as sent",
    ),
    "egress": Command(
        "collector.commands.egress",
        "collector",
        "list what left the mesh, which policy allows it, and how clock-like it is",
    ),
    "keys": Command("provenance.keys_command", "", "make, list, rotate and publish the keys that sign stamps"),
    "version": Command("provenance.version", "", "print the versions that matter in a bug report"),
}

EXIT_USAGE: Final = 2
EXIT_DEFECT: Final = 70
"""EX_SOFTWARE of sysexits.h. Python's own 1 would say that something was found."""

EXIT_INTERRUPTED: Final = 130


def usage() -> str:
    """The text of `provenance --help`."""
    rows = "\n".join(f"  {name:<9} {command.summary}" for name, command in COMMANDS.items())
    return f"""\
usage: provenance COMMAND [OPTIONS]

Every call leaves a stamp, every stamp has witnesses; a finding is a disagreement between witnesses.

commands:
{rows}

A SOURCE is a DuckDB file (evidence.duckdb) or a collector's URL (http://127.0.0.1:4318).

first steps:
  provenance demo                                  a mesh, its shadow traffic, a slow hop and a leaking service
  provenance collect --db evidence.duckdb          OTLP on 4317 (gRPC) and 4318 (HTTP)
  provenance scan http://127.0.0.1:4318            exit code 0: clean, 1: findings, 2: usage, 3: unreachable,
                                                   70: a defect of ours, told on stderr
  provenance tui evidence.duckdb

`provenance COMMAND --help` tells the rest.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage(), end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        arguments[0] = "version"
    name, rest = arguments[0], arguments[1:]
    command = COMMANDS.get(name)
    if command is None:
        print(f"provenance: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return _load(command)(rest)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place that can keep a defect from looking like findings
        if isinstance(error, ModuleNotFoundError) and _is_foreign(error.name or ""):
            print(
                f"provenance {name}: the package {error.name!r} is not installed; "
                f'try: pip install "mesh-provenance[{command.extra or "all"}]"',
                file=sys.stderr,
            )
            return EXIT_USAGE
        traceback.print_exc()
        print(f"provenance {name}: a defect of ours: please report it, with `provenance version`", file=sys.stderr)
        return EXIT_DEFECT


def _is_foreign(module: str) -> bool:
    """Whether a module that is missing is not one of ours: then an extra is missing, else it is a defect."""
    return module.partition(".")[0] not in {"provenance", "collector", "tui"}


def _load(command: Command) -> Callable[[Sequence[str]], int]:
    main_function: Callable[[Sequence[str]], int] = importlib.import_module(command.module).main
    return main_function


if __name__ == "__main__":
    sys.exit(main())

"""How each detector decides, for people: out of the detectors' own docstrings and parameters, which are the one place it is written.

explain("shadow", thresholds) -> text      rules in the order in which they are asked, thresholds as they stand,
                                           what it needs to see, what it cannot see
thresholds_page() -> docs/thresholds.md
"""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from collector.forensics.findings import Kind
from collector.forensics.thresholds import Threshold, Thresholds, listed, toml_value
from collector.forensics.trades import trade_of


@dataclass(frozen=True, slots=True)
class Detector:
    """Where a detector is written, and what no docstring of one module can say.

    Attributes:
        modules: Of `collector.forensics`, in the order in which they judge; their docstrings are the rules.
        needs: What must be recorded, and what that allows to be found.
        blind: What it cannot find, whatever is recorded.
    """

    modules: tuple[str, ...]
    needs: tuple[str, ...]
    blind: tuple[str, ...]


DETECTORS: Final[dict[Kind, Detector]] = {
    "shadow": Detector(
        ("shadow", "verdicts", "ways", "dark", "calls"),
        (
            "server spans of the callee: without them there is no call to judge",
            "access logs of sidecars, with request ids: without them `mesh_bypass` is never found, and how many is told",
            "our middleware at the callee: without it `unstamped` and `tampered` are never found",
            "client spans of the caller: without them a caller is not known, and its proxy cannot be asked",
        ),
        (
            "calls to a service that sends no spans, unless flows or sockets show their connections",
            "calls that sampling left out on both sides",
            "a bypass in a log that is itself a sample: it is told as unknown",
            "a caller that forges a whole valid stamp with a stolen key",
        ),
    ),
    "latency": Detector(
        ("latency", "shifts", "queue_waits", "earlier", "attribution"),
        (
            "plain spans of two services that call each other; client and server spans, to tell the network's part",
            "enough calls on the edge, inside the episode and outside it: see `min_calls`",
            "something normal to compare with: in the window, or in a baseline that is given",
        ),
        (
            "a service that was slow all the time that is looked at: a wider window or a baseline shows it",
            "calls that failed fast or never ended",
            "what happened inside a span that has no children: its self time is named, not the cause in it",
        ),
    ),
    "egress": Detector(
        ("egress", "span_egress", "beacon", "oddities"),
        (
            "client spans that name a destination: address, host or URL",
            "an allow-list or policies: without them nothing is `unlisted`",
            "for a rhythm as many calls as `min_beacon_calls`, within the window",
        ),
        (
            "connections that no span, flow or log records",
            "what is inside a connection to a destination that is allowed",
            "a rhythm slower than the window is long, divided by those calls",
        ),
    ),
}


def explain(kind: Kind, thresholds: Thresholds | None = None) -> str:
    """How the detector of this kind decides, as plain text; it ends with a line break."""
    detector = DETECTORS[kind]
    parts = [f"HOW {kind.upper()} FINDINGS ARE MADE"]
    for number, name in enumerate(detector.modules, 1):
        parts.append(f"{number}. {_docstring(name)}")
    parts += [
        "THRESHOLDS, as they stand (TOML for --thresholds; what differs from the default is marked)",
        "\n".join(_toml(kind, thresholds)),
        "WHAT IT NEEDS TO SEE",
        "\n".join(f"- {text}" for text in detector.needs),
        "WHAT IT CANNOT SEE",
        "\n".join(f"- {text}" for text in detector.blind),
    ]
    return "\n\n".join(parts) + "\n"


def _toml(kind: Kind, thresholds: Thresholds | None) -> Iterator[str]:
    """The thresholds of a kind as a TOML file that would set them so."""
    usual = {(one.table, one.name): one.value for one in listed(kind=kind)}
    table = ""
    for one in listed(thresholds, kind):
        if one.table != table:
            yield from ([""] if table else []) + [f"[{one.table}]"]
            table = one.table
        if one.doc:
            yield f"# {one.doc}"
        default = usual[one.table, one.name]
        changed = "" if one.value == default else f"  # changed; the default is {toml_value(default, one.name)}"
        yield f"{_assigned(one)}{changed}"


def _assigned(one: Threshold) -> str:
    return f"# {one.name} = (not set)" if one.value is None else f"{one.name} = {toml_value(one.value, one.name)}"


def thresholds_page() -> str:
    """docs/thresholds.md."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield from (
        "# Thresholds",
        "",
        "Every number that a detector decides by, with its default and what it trades. `--thresholds FILE` (or `PROVENANCE_THRESHOLDS`) of",
        "`provenance scan`, `provenance watch` and `provenance tui` reads a TOML file that names those to change; an unknown key or a wrong type is",
        "an error that names file, key, what was expected and the nearest key. `provenance scan --explain KIND` prints them as they stand,",
        "beside the rules that use them.",
        "",
        'What ends in `_ns` is a duration: `"15s"`, `"250ms"`, or whole nanoseconds. A list replaces the default\'s.',
        "",
        "This page is written by `python -m collector.forensics.explain > docs/thresholds.md`, out of the detectors' docstrings.",
    )
    table = ""
    for one in listed():
        if one.table != table:
            table = one.table
            yield from ("", f"## `[{table}]`", "", "| key | default | | smaller | larger |", "|---|---|---|---|---|")
        value = "not set" if one.value is None else f"`{_short(toml_value(one.value, one.name))}`"
        cells = (f"`{one.name}`", value, one.doc, *trade_of(one))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…]"


def _docstring(name: str) -> str:
    doc = importlib.import_module(f"collector.forensics.{name}").__doc__
    if doc is None:
        return f"collector/forensics/{name}.py: its text was left out of this installation (python -OO)"
    return inspect.cleandoc(doc)


if __name__ == "__main__":
    print(thresholds_page(), end="")

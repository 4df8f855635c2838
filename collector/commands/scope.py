"""What `scan` and `tui` look at and by which rules: the options they share, and what the detectors are given for them.

Nothing heavy is imported before it is asked for.
"""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.commands.times import Moment, parse_moment
from collector.errors import ConfigError

if TYPE_CHECKING:
    from collector.forensics.egress import EgressParams
    from collector.forensics.latency import LatencyParams
    from collector.forensics.shadow import ShadowParams
    from collector.forensics.tables import Window
    from collector.forensics.thresholds import Thresholds
    from collector.policy.policies import Policies

THRESHOLDS_ENV: Final = "PROVENANCE_THRESHOLDS"


@dataclass(frozen=True, slots=True)
class Scope:
    """A time range, which may move with the clock, and the rules.

    Attributes:
        since: None: from the beginning.
        until: None: to the end.
        entry_services: Who takes unstamped traffic by nature.
        probes: How user agents of health checks and scrapers begin, or, with a leading slash, their paths.
        policy: What may be reached outside; None: what the collector has stored.
        thresholds: What the detectors decide by; None: their defaults.
        is_complete: Whether everything has arrived that ever will: then the newest rows are judged like all others, which those of an
            import are.
    """

    since: Moment | None = None
    until: Moment | None = None
    entry_services: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    policy: "Policies | None" = None
    thresholds: "Thresholds | None" = None
    is_complete: bool = False

    @property
    def is_moving(self) -> bool:
        """Whether the window moves with the clock."""
        return any(m is not None and m.is_relative for m in (self.since, self.until))

    def bounds(self, now_unix_nano: int) -> tuple[int | None, int | None]:
        """Where the window starts and ends, seen from now; raises ConfigError if it is empty."""
        since, until = (None if m is None else m.at(now_unix_nano) for m in (self.since, self.until))
        if since is not None and until is not None and since >= until:
            raise ConfigError("--since is not before --until")
        return since, until

    def window(self, now_unix_nano: int) -> "Window":
        """The same for the detectors."""
        from collector.forensics.tables import Window

        return Window(*self.bounds(now_unix_nano))

    def shadow(self) -> "ShadowParams":
        """For `examine_shadow`."""
        from collector.forensics.shadow import ShadowParams

        base = ShadowParams() if self.thresholds is None else self.thresholds.shadow
        return replace(
            base,
            entry_services=base.entry_services + self.entry_services,
            probe_user_agents=base.probe_user_agents + tuple(p for p in self.probes if not p.startswith("/")),
            probe_paths=base.probe_paths + tuple(p for p in self.probes if p.startswith("/")),
            settle_ns=0 if self.is_complete else base.settle_ns,
        )

    def egress(self) -> "EgressParams":
        """For `examine_egress`."""
        from collector.forensics.egress import EgressParams

        base = EgressParams() if self.thresholds is None else self.thresholds.egress
        return replace(base, policy=self.policy, settle_ns=0 if self.is_complete else base.settle_ns)

    def latency(self) -> "LatencyParams":
        """For `find_latency`."""
        from collector.forensics.latency import LatencyParams

        return LatencyParams() if self.thresholds is None else self.thresholds.latency


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `scope_of` reads."""
    add = parser.add_argument
    add("--since", metavar="TIME", help="calls that began at this time or later (default: all)")
    add("--until", metavar="TIME", help="calls that began before this time (default: all)")
    add_rules_arguments(parser)


def add_rules_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of them that say what is right and what is wrong, for whatever has a window of its own."""
    add = parser.add_argument
    add(
        "--entry",
        metavar="SERVICE",
        action="append",
        default=[],
        help="a service that takes unstamped traffic from outside by nature; may be repeated",
    )
    add(
        "--probe",
        type=_probe,
        metavar="AGENT_PREFIX|/PATH",
        action="append",
        default=[],
        help="GET and HEAD by a user agent that begins like this, or of exactly this path, are health checks or scrapes: they "
        "carry no stamp, and may pass the sidecar by; may be repeated (kubelet, Prometheus and their like are known)",
    )
    add(
        "--policy",
        metavar="FILE",
        type=Path,
        help="what may be reached: TOML with [egress], Istio's, Linkerd's or Kubernetes' YAML or JSON, or a directory of them "
        "(default: the collector's list); an empty list allows nothing",
    )
    add(
        "--thresholds",
        metavar="FILE",
        type=Path,
        help="TOML whose [shadow], [latency] and [egress] say what the detectors decide by; see docs/thresholds.md "
        f"(environment: {THRESHOLDS_ENV})",
    )


def thresholds_of(options: argparse.Namespace) -> "Thresholds | None":
    """What the flag or the environment names; None where neither does. Raises ConfigError."""
    named = os.environ.get(THRESHOLDS_ENV)
    path = options.thresholds or (Path(named) if named else None)
    if path is None:
        return None
    from collector.forensics.thresholds import parse_thresholds

    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: the thresholds cannot be read: {reason}") from e
    return parse_thresholds(text, name=str(path))


def _probe(text: str) -> str:
    # Every user agent begins with an empty prefix.
    if not text.strip():
        raise argparse.ArgumentTypeError("write how the user agent begins (curl/), or a path (/healthz)")
    return text.strip()


def scope_of(options: argparse.Namespace, now_unix_nano: int, *, is_complete: bool = False) -> Scope:
    """The scope that the options name; raises ConfigError, also if its window is empty now. `is_complete` as in `Scope`."""
    policy = None
    if options.policy is not None:
        from collector.policy.policies import read_policies

        policy = read_policies([options.policy])
    since, until = getattr(options, "since", None), getattr(options, "until", None)
    scope = Scope(
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
        entry_services=tuple(options.entry),
        probes=tuple(options.probe),
        policy=policy,
        thresholds=thresholds_of(options),
        is_complete=is_complete,
    )
    scope.bounds(now_unix_nano)
    return scope

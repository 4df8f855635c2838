"""What worker threads tell the screen: each carries an immutable snapshot, and only handlers touch widgets."""

from textual.message import Message

from tui.snapshots import Edges, Findings, Health, Hits, Hop, Trace


class StatusArrived(Message):
    """How much evidence there is was asked for, and answered."""

    def __init__(self, health: Health) -> None:
        super().__init__()
        self.health = health


class FindingsArrived(Message):
    """The detectors have run."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self.findings = findings


class EdgesArrived(Message):
    """The RED metrics are there."""

    def __init__(self, edges: Edges) -> None:
        super().__init__()
        self.edges = edges


class HitsArrived(Message):
    """A trace search is answered."""

    def __init__(self, hits: Hits) -> None:
        super().__init__()
        self.hits = hits


class TraceArrived(Message):
    """One trace is loaded."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace


class HopsArrived(Message):
    """The verdicts on a trace's calls are there."""

    def __init__(self, trace_id: str, hops: tuple[Hop, ...]) -> None:
        super().__init__()
        self.trace_id = trace_id
        self.hops = hops


class LiveFinished(Message):
    """One round of the live lane is over: what was known then, and how long it took."""

    def __init__(self, health: Health, seconds: float) -> None:
        super().__init__()
        self.health = health
        self.seconds = seconds


class Failed(Message, bubble=False):
    """A question was not answered. `is_lost`: nobody was there to answer."""

    def __init__(self, lane: str, what: str, reason: str, *, is_lost: bool) -> None:
        super().__init__()
        self.lane = lane
        self.what = what
        self.reason = reason
        self.is_lost = is_lost


class Answered(Message, bubble=False):
    """A question was answered: older problems with it are over."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

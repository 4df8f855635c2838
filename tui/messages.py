"""What worker threads tell the screen: each carries an immutable snapshot, and only handlers touch widgets."""

from textual.message import Message

from tui.snapshots import Edges, Findings, Health, Hits, Trace


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


class LiveFinished(Message):
    """One round of the live lane is over; `seconds` is what it cost."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Failed(Message):
    """A question was not answered. `lost_contact`: nobody was there to answer."""

    def __init__(self, what: str, reason: str, *, lost_contact: bool) -> None:
        super().__init__()
        self.what = what
        self.reason = reason
        self.lost_contact = lost_contact

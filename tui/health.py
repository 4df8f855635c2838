"""Forensics' status of a store as the workbench shows it: what is there, and a sentence for each thing that is missing."""

from collector.forensics.absence import COVERAGE_NS
from collector.forensics.status import Status
from tui.snapshots import Health
from tui.text import clock_time


def health_of(status: Status, lacks: str = "") -> Health:
    """The snapshot of a status, and of what its source says that it lacks."""
    return Health(
        span_count=status.span_count,
        newest_unix_nano=status.last_received_unix_nano,
        service_count=len(status.services),
        incomplete=(
            *([lacks] if lacks else []),
            *_silent(status),
            *(part for part in status.incomplete.split("; ") if part),
        ),
    )


def _silent(status: Status) -> list[str]:
    """Proxies whose last line is older than what an absence of lines may prove: from then on nothing is known of them."""
    newest = status.last_start_unix_nano
    if newest is None:
        return []
    last: dict[str, int] = {}
    for log in status.proxy_logs:
        last[log.service_name] = max(last.get(log.service_name, 0), log.last_record_unix_nano)
    return [
        f"{service}'s proxy has not logged since {clock_time(moment)}"
        for service, moment in last.items()
        if newest - moment > COVERAGE_NS
    ]

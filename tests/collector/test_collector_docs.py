"""docs/collector.md says what the code does: settings, refusals and metrics are the ones that exist."""

import re
from pathlib import Path

from collector.receiver.counters import REASONS, Counters
from collector.receiver.metrics import PREFIX, Gauges, LogLag, exposition
from collector.settings import load, markdown_table

DOC = (Path(__file__).parents[2] / "docs" / "collector.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return DOC.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_table_of_settings_is_the_loaders() -> None:
    between = DOC.partition("<!-- settings:")[2].partition("-->\n")[2].partition("<!-- /settings -->")[0]

    assert between.strip() == markdown_table().strip(), "write it again by the command above the table"


def test_every_reason_is_explained_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("What each refusal means"), re.MULTILINE)

    assert rows == list(REASONS)


def test_every_metric_is_explained_and_no_other() -> None:
    counters = Counters()
    counters.committed(0.1, {"spans": 1})
    gauges = Gauges(
        ready=True,
        queue_bytes=0,
        queue_limit_bytes=1,
        rows={},
        file_bytes=1,
        wal_bytes=1,
        data_age_seconds=1,
        rss_bytes=1,
        start_time_seconds=1,
        version="1",
        access_logs=[LogLag("x", 1, 1.0)],
    )
    page = exposition(counters.read(), gauges)
    served = set(re.findall(rf"^# TYPE {PREFIX}(\w+) ", page, re.MULTILINE))
    cells = re.findall(r"^\| (`[^|]+) \|", section("What is measured"), re.MULTILINE)

    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == served


def test_the_example_is_a_file_that_is_taken(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
    path = tmp_path / "provenance.toml"
    path.write_text(example)

    assert load(["--config", str(path)], {}).settings.policy == path

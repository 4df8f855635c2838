"""How every screen looks, at the smallest and a generous size. `pytest --snapshot-update` after looking at the change."""

import pytest

from collector.errors import SourceUnreachableError
from tests.tui.factories import FakeEvidence, clock, make_health
from tests.tui.test_tui_workbench import settle
from tui.app import Workbench


def incomplete(evidence):
    evidence.found = []
    evidence.health = make_health(incomplete=("payment's proxy has not logged since 03:02:11Z", "no egress allow-list"))


def lost(evidence):
    evidence.error = SourceUnreachableError("no collector answers at http://127.0.0.1:4318")


SCREENS = {
    "findings": ((), None),
    "nothing-found": ((), incomplete),
    "lost-contact": ((), lost),
    "calls": (("2",), None),
    "traces": (("3",), None),
    "search-slip": (("3", "slash", *"dur>fast"), None),
    "waterfall": (("j", "j", "enter"), None),
    "waterfall-details": (("j", "j", "enter", "enter"), None),
    "waterfall-proxies": (("enter", "p"), None),
    "help": (("question_mark",), None),
    "sql": (("D",), None),
    "export": (("x",), None),
}


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("screen", SCREENS)
def test_how_it_looks(snap_compare, monkeypatch, screen, size):
    monkeypatch.chdir("/")  # the export dialog shows where it would write
    keys, prepare = SCREENS[screen]
    evidence = FakeEvidence()
    if prepare is not None:
        prepare(evidence)

    async def use(pilot):
        await settle(pilot)
        for key in keys:
            await pilot.press(key)
            await settle(pilot)
        pilot.app.clear_notifications()  # they leave by the clock on the wall
        await settle(pilot)

    app = Workbench(evidence, clock=clock, refresh_seconds=3600)
    app.animation_level = "none"
    assert snap_compare(app, terminal_size=size, run_before=use)

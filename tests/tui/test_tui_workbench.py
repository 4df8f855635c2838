"""The workbench as a person uses it: keys in, what is on the screen out. Answers come from a fake `Evidence`."""

import itertools
import json
import threading

import polars as pl
import pytest
from textual.widgets import Input

from collector.errors import QueryError, SourceUnreachableError
from tests.tui.factories import (
    NOW,
    SECOND,
    FakeEvidence,
    clock,
    make_edge,
    make_finding,
    make_health,
    make_span,
    make_summary,
    make_trace,
    span_id_of,
    trace_id_of,
)
from tui.app import Workbench
from tui.screens.dialogs import ExportDialog, TextDialog
from tui.screens.main import FilterInput, MainScreen
from tui.screens.trace import TraceScreen
from tui.snapshots import EdgesView, FindingsView, SearchView, TraceQuery, TraceView
from tui.widgets.bars import StatusLine
from tui.widgets.listing import Document, Listing
from tui.widgets.panes import FindingsPane

WIDE, SMALL = (120, 40), (80, 24)


def text_of_screen(app) -> str:
    """What is on the screen, line by line."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


async def settle(pilot, until=None, *, rounds=200):
    """Wait for workers and messages; with `until`, for the thing itself."""
    for _ in range(rounds):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()
        if until is None or until():
            await pilot.pause()
            return
    raise AssertionError(f"never happened; the screen was\n{text_of_screen(pilot.app)}")


class opened:  # noqa: N801 - reads as a word
    """A running workbench with everything answered."""

    def __init__(self, evidence=None, *, size=WIDE, settled=True, refresh=3600.0):
        self.evidence = evidence or FakeEvidence()
        self.app = Workbench(self.evidence, clock=clock, refresh_seconds=refresh)
        self.context = self.app.run_test(size=size, notifications=True)
        self.settled = settled

    async def __aenter__(self):
        self.pilot = await self.context.__aenter__()
        if self.settled:
            await settle(self.pilot)
        return self

    async def __aexit__(self, *error):
        self.evidence.gate.set()
        return await self.context.__aexit__(*error)

    @property
    def text(self):
        return text_of_screen(self.app)

    @property
    def listing(self) -> Listing:
        screen = self.app.screen
        return screen.listing if isinstance(screen, TraceScreen) else main_of(self)._pane.listing

    async def press(self, *keys):
        """Keys at a person's pace: typed text at once, everything else one after the other."""
        for typed, group in itertools.groupby(keys, key=lambda k: len(k) == 1 and isinstance(self.app.focused, Input)):
            for batch in [list(group)] if typed else [[k] for k in group]:
                await self.pilot.press(*batch)
                await settle(self.pilot)


def main_of(bench) -> MainScreen:
    screen = bench.app.screen_stack[0]
    assert isinstance(screen, MainScreen)
    return screen


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_the_first_paint_waits_for_no_query():
    evidence = FakeEvidence()
    evidence.gate.clear()
    async with opened(evidence, settled=False) as bench:
        await bench.pilot.pause()
        assert "[1 Findings]" in bench.text
        assert "Reading the evidence" in bench.text
        assert "http://127.0.0.1:4318" in bench.text
        evidence.gate.set()
        await settle(bench.pilot)
        assert "[1 Findings 4]" in bench.text


async def test_findings_open_with_the_most_severe_on_top_and_its_reasons():
    async with opened() as bench:
        lines = bench.text.splitlines()
        assert "◆ critical" in lines[2]
        assert "? → payment" in lines[2]
        for part in (
            "mesh_bypass, unstamped",
            "T1562.004",
            "2 of 33 calls could not be judged",
            "2026-11-23 03:12:09Z",
            trace_id_of(0),
        ):
            assert part in bench.text
        await bench.press("j")
        assert "beacon score" in bench.text


async def test_a_small_terminal_shows_the_list_and_the_explanation():
    async with opened(size=SMALL) as bench:
        assert "31 calls to payment carried no stamp" in bench.text
        assert "4 findings" in bench.text
        assert "enter open" in bench.text


async def test_an_empty_list_says_whether_that_is_good():
    evidence = FakeEvidence()
    evidence.found = []
    async with opened(evidence) as bench:
        assert "No findings in 12,345 spans of 5 services" in bench.text
    evidence.health = make_health(incomplete=("payment's proxy has not logged since 03:02:11Z",))
    async with opened(evidence) as bench:
        assert "What could not be seen" in bench.text
        assert "payment's proxy has not logged since 03:02:11Z" in bench.text
    evidence.health = make_health(span_count=0, newest_unix_nano=None)
    async with opened(evidence) as bench:
        assert "no evidence either" in bench.text


# --- live -------------------------------------------------------------------------------------------------------------


async def test_a_refresh_keeps_the_selection_and_marks_what_is_new():
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        await bench.press("j", "j")
        selected = bench.listing.cursor_key
        evidence.found = [make_finding(callee="ledger", score=0.99), *evidence.found]
        evidence.health = make_health(span_count=12_400)
        await bench.press("r")
        assert bench.listing.cursor_key == selected
        assert bench.listing.cursor == 3
        assert any("✦" in line and "? → ledger" in line for line in bench.text.splitlines())
        await bench.press("g", "j", "r")
        assert not any("✦" in line for line in bench.text.splitlines()), "looked at: no longer new"


async def test_a_live_source_is_asked_again_and_unchanged_evidence_is_not_scanned_twice():
    evidence = FakeEvidence()
    async with opened(evidence, refresh=0.01) as bench:
        await settle(bench.pilot, lambda: evidence.asked.count("status") >= 4)
        assert evidence.asked.count("findings") == 1
        evidence.health = make_health(span_count=20_000)
        await settle(bench.pilot, lambda: evidence.asked.count("findings") == 2)


async def test_a_moving_window_is_scanned_every_time():
    evidence = FakeEvidence()
    evidence.has_moving_window = True
    async with opened(evidence, refresh=0.01) as bench:
        await settle(bench.pilot, lambda: evidence.asked.count("findings") >= 3)


async def test_a_file_is_asked_once():
    evidence = FakeEvidence(name="evidence.duckdb", is_live=False)
    async with opened(evidence, refresh=0.01) as bench:
        assert evidence.asked.count("status") == 1
        await bench.press("r")
        assert evidence.asked.count("findings") == 2, "but r asks again"


async def test_a_lost_collector_is_told_retried_and_welcomed_back():
    evidence = FakeEvidence()
    async with opened(evidence, refresh=0.01) as bench:
        evidence.error = SourceUnreachableError("no collector answers at http://127.0.0.1:4318")
        await settle(bench.pilot, lambda: "lost contact since 03:14:07Z, retrying" in bench.text)
        assert "? → payment" in bench.text, "what was known stays on the screen"
        asked = len(evidence.asked)
        await settle(bench.pilot, lambda: len(evidence.asked) > asked + 2)
        evidence.error = None
        await settle(
            bench.pilot,
            lambda: (
                "12,345 spans" in bench.text
                and "lost contact" not in bench.app.screen.query_one(StatusLine).render_line(0).text
            ),
        )
        assert bench.app.standing.lost_since_unix_nano is None


async def test_a_refused_query_is_told_until_it_is_answered():
    evidence = FakeEvidence()
    evidence.error = QueryError("[bold]Binder Error[/]: no column")
    async with opened(evidence) as bench:
        assert "✗ the evidence: [bold]Binder Error[/]: no column" in bench.text
        evidence.error = None
        await bench.press("r")
        assert "Binder" not in bench.app.screen.query_one(StatusLine).render_line(0).text


async def test_a_defect_is_shown_and_the_workbench_lives_on():
    evidence = FakeEvidence()
    evidence.error = ZeroDivisionError("oops")  # type: ignore[assignment]
    async with opened(evidence) as bench:
        assert "defect in the workbench: ZeroDivisionError('oops')" in " ".join(bench.text.split())
        evidence.error = None
        await bench.press("r")
        assert "? → payment" in bench.text


# --- tabs, filter, search ---------------------------------------------------------------------------------------------


async def test_tabs_by_digit_tab_key_and_click():
    async with opened() as bench:
        for key, shown in [
            ("2", "[2 Calls"),
            ("3", "[3 Traces"),
            ("1", "[1 Findings"),
            ("tab", "[2 Calls"),
            ("shift+tab", "[1 Findings"),
            ("shift+tab", "[3 Traces"),
        ]:
            await bench.press(key)
            assert shown in bench.text
        await bench.pilot.click("TabBar", offset=(16, 0))
        await settle(bench.pilot)
        assert "[1 Findings" in bench.text


async def test_the_filter_narrows_while_typing_and_esc_clears_it():
    async with opened() as bench:
        await bench.press("slash", *"egress")
        assert len(bench.listing.rows) == 1
        await bench.press("enter")
        assert bench.listing.has_focus
        await bench.press("slash", *"zzz", "enter")
        assert "None of 4 findings matches “egresszzz”" in bench.text
        await bench.press("escape")
        assert len(bench.listing.rows) == 4
        assert not bench.app.screen.query_one(FilterInput).display or not main_of(bench).has_class("-filtering")


async def test_each_tab_keeps_its_own_filter():
    async with opened() as bench:
        await bench.press("2", "slash", *"pricing", "enter")
        assert len(bench.listing.rows) == 1
        await bench.press("1")
        assert len(bench.listing.rows) == 4
        await bench.press("2")
        assert len(bench.listing.rows) == 1


async def test_calls_sort_by_what_matters_and_enter_brings_their_traces():
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        await bench.press("2")
        assert "ERRORS▼" in bench.text
        first = bench.text.splitlines()[2]
        assert "payment" in first
        assert "✗ 1.3%" in first
        await bench.press("s")
        assert "P50▼" in bench.text
        await bench.press("g")
        assert "229ms" in bench.text.splitlines()[2]
        await bench.press("enter")
        assert "[3 Traces" in bench.text
        assert TraceQuery(service="gateway", operation="POST /buy") in evidence.asked
        assert 'service:gateway op:"POST /buy"' in bench.text


async def test_a_search_is_asked_and_a_slip_is_told_and_not_asked():
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        await bench.press("3", "slash", *"error:true dur>230ms", "enter")
        assert TraceQuery(errors_only=True, min_duration_ns=230_000_000) in evidence.asked
        assert "9 traces, newest first" in bench.text
        asked = len(evidence.asked)
        await bench.press("slash", *" dur>x")
        assert "✗ dur>x is not a duration" in bench.text
        await bench.press("enter")
        assert len(evidence.asked) == asked
        assert bench.app.screen.query_one(FilterInput).has_focus


async def test_a_newer_search_interrupts_the_older_one_and_its_late_answer_is_dropped():
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        await bench.press("3")
        evidence.gate.clear()
        await bench.pilot.press("slash", *"error:true", "enter")
        await bench.pilot.pause()
        await bench.pilot.press("slash", *" sort:slowest", "enter")
        await bench.pilot.pause()
        assert evidence.interrupted == ["search"]
        evidence.gate.set()
        await settle(bench.pilot, lambda: "slowest first" in bench.text)


# --- the waterfall ----------------------------------------------------------------------------------------------------


async def test_a_finding_opens_its_trace_at_its_span_with_the_witnesses_beside_each_hop():
    async with opened(FakeEvidence()) as bench:
        await bench.press("j", "j", "enter")
        assert isinstance(bench.app.screen, TraceScreen)
        assert bench.listing.cursor_key == span_id_of(7)
        lines = bench.text.splitlines()
        assert any("inventory POST /reserve" in line and "C>->->S ✓=" in line for line in lines)
        assert any("payment payment.Payment/Charge" in line and "C>c>s>S ✓≠" in line for line in lines)
        assert "7 folded (p)" in bench.text


async def test_enter_goes_through_the_findings_evidence_one_after_the_other():
    async with opened() as bench:
        for n in (0, 1, 2, 0):
            await bench.press("enter")
            assert f"trace {trace_id_of(n)}" in bench.text
            await bench.press("escape")
        await bench.press("enter", "n")
        assert f"trace {trace_id_of(2)}" in bench.text
        await bench.press("N")
        assert f"trace {trace_id_of(1)}" in bench.text


async def test_evidence_traces_can_be_chosen_in_the_detail():
    async with opened() as bench:
        await bench.press("l", "j", "enter")
        assert f"trace {trace_id_of(1)}" in bench.text


async def test_folding_proxies_and_subtrees():
    async with opened() as bench:
        await bench.press("enter")
        assert "proxy gateway" not in bench.text
        await bench.press("p")
        assert "proxy gateway" in bench.text
        await bench.press("p", "g")
        count = len(bench.listing.rows)
        await bench.press("space")
        assert len(bench.listing.rows) == 1
        assert "+17" in bench.text
        await bench.press("space")
        assert len(bench.listing.rows) == count


async def test_errors_and_the_critical_path_are_a_key_away():
    async with opened() as bench:
        await bench.press("enter", "g", "e")
        assert bench.listing.cursor_key == span_id_of(14)
        await bench.press("e")
        assert bench.listing.cursor_key == span_id_of(17)
        await bench.press("e")
        assert "No other error in this trace." in bench.text
        await bench.press("E", "g", "c")
        assert bench.listing.cursor_key == span_id_of(2)
        await bench.press("space", "e")
        assert bench.listing.cursor_key == span_id_of(14), "a jump unfolds what hides its goal"


async def test_details_say_what_is_known_of_the_span_and_its_hop():
    async with opened(size=SMALL) as bench:
        await bench.press("j", "j", "enter")
        assert "caller's span seen" not in bench.text
        await bench.press("enter")
        assert bench.app.screen.query_one(Document).display
        assert "caller's proxy NOT SEEN" in " ".join(bench.text.split())
        await bench.press("l", "G")
        assert "payment's proxy inbound: POST /payment.Payment/Charge 200 [UF]" in " ".join(bench.text.split())


async def test_a_trace_that_is_not_there_says_so():
    evidence = FakeEvidence()
    evidence.traces.clear()
    async with opened(evidence) as bench:
        await bench.press("enter", "space", "e", "c", "p", "enter", "y", "x")
        assert "No span of this trace is in the evidence" in bench.text


async def test_a_trace_that_cannot_be_read_can_be_asked_again():
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        evidence.error = QueryError("time limit")
        await bench.press("enter")
        assert "not answered: time limit; r asks again" in bench.text
        evidence.error = None
        await bench.press("r")
        assert "checkout.Checkout/Buy" in bench.text


async def test_the_waterfall_does_not_wait_for_the_verdicts():
    class Slow(FakeEvidence):
        may_judge = threading.Event()

        def hops(self, trace):
            assert self.may_judge.wait(20)
            return super().hops(trace)

    evidence = Slow()
    async with opened(evidence) as bench:
        await bench.pilot.press("j", "j", "enter")
        while "inventory POST /reserve" not in bench.text:
            await bench.pilot.pause()
        assert "C>?>?>S" in bench.text
        evidence.may_judge.set()
        await settle(bench.pilot)
        assert "C>->->S" in bench.text
        assert bench.listing.cursor_key == span_id_of(7), "the cursor has not moved"


async def test_twenty_thousand_spans_are_fluent():
    spans = [
        make_span(0),
        *(make_span(i, parent_span_id=span_id_of(i // 2), error=i == 19_999, depth=1) for i in range(1, 20_000)),
    ]
    spans.sort(key=lambda s: s.span_id == "")
    evidence = FakeEvidence()
    evidence.traces[trace_id_of(0)] = make_trace(0, spans=spans)
    async with opened(evidence) as bench:
        await bench.press("enter")
        assert len(bench.listing.rows) == 20_000
        await bench.press("e")
        assert bench.listing.cursor_key == span_id_of(19_999)


# --- on every screen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "view"),
    [
        ((), FindingsView()),
        (("2",), EdgesView()),
        (("3",), SearchView(TraceQuery())),
        (("enter",), TraceView(trace_id_of(0), NOW - 5 * SECOND, NOW - 5 * SECOND + 223_800_000)),
    ],
)
async def test_d_shows_the_sql_of_what_is_on_the_screen(keys, view):
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        await bench.press(*keys, "D")
        assert isinstance(bench.app.screen, TextDialog)
        assert view in evidence.asked
        assert "payment[/red]" in bench.text
        await bench.press("y")
        assert bench.app.clipboard.startswith(f"-- {type(view).__name__}")
        await bench.press("escape")
        assert not isinstance(bench.app.screen, TextDialog)


@pytest.mark.parametrize(
    ("keys", "copied"),
    [
        ((), "[critical] shadow: ? → payment"),
        (("2",), "checkout → payment"),
        (("3",), f"trace {trace_id_of(0)}"),
        (("enter",), "span "),
    ],
)
async def test_y_copies_and_says_that_it_may_not_work(keys, copied):
    async with opened() as bench:
        await bench.press(*keys, "y")
        assert copied in bench.app.clipboard
        assert "x writes a file" in " ".join(bench.text.split())


@pytest.mark.parametrize(
    ("keys", "rows"), [((), 4), (("2",), 8), (("3",), 40), (("enter",), 19), (("slash", *"egress", "enter"), 1)]
)
@pytest.mark.parametrize("suffix", ["json", "csv"])
async def test_x_writes_what_is_on_the_screen(tmp_path, monkeypatch, keys, rows, suffix):
    monkeypatch.chdir(tmp_path)
    async with opened() as bench:
        await bench.press(*keys, "x")
        assert isinstance(bench.app.screen, ExportDialog)
        await bench.press(*([] if suffix == "json" else ["tab"]), "enter")
        (path,) = tmp_path.iterdir()
        assert path.suffix == f".{suffix}"
        assert str(rows) in " ".join(bench.text.split())
        assert len(json.loads(path.read_text()) if suffix == "json" else pl.read_csv(path)) == rows


async def test_an_export_never_overwrites_and_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with opened() as bench:
        await bench.press("x", "enter", "x")
        assert "exists already; choose another name" in bench.text
        await bench.press("enter")
        assert isinstance(bench.app.screen, ExportDialog), "nothing is written, the dialog stays"
        await bench.press(*"x")
        assert "expected a name that ends in .json or .csv" in bench.text
        await bench.press("escape")
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keys", [(), ("2",), ("enter",)])
async def test_help_lists_every_key_of_the_screen(keys):
    async with opened() as bench:
        await bench.press(*keys)
        bindings = [b for _k, b in bench.app.screen._bindings if b.description]
        await bench.press("question_mark")
        rows = bench.app.screen.query_one(Document).rows
        told = "\n".join("".join(p.text for p in rows.line(i, 90)) for i in range(len(rows)))
        assert all(b.description in told for b in bindings)
        assert "the callee's proxy saw the call" in told
        assert "dur>100ms" in told


async def test_q_ends_queries_and_leaves():
    evidence = FakeEvidence()
    async with opened(evidence) as bench:
        await bench.press("q")
    assert evidence.is_closed
    assert bench.app.return_code == 0


NASTY = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]\u202egnp\u2066 [@click=app.quit]q[/] {0} %s \x00"


async def test_nothing_that_strangers_write_reaches_the_terminal_or_is_parsed():
    evidence = FakeEvidence(name=f"http://{NASTY}")
    evidence.health = make_health(incomplete=(NASTY,))
    evidence.found = [
        make_finding(
            callee=NASTY,
            operation=NASTY,
            explanation=NASTY,
            affected=(NASTY,),
            completeness=NASTY,
            reasons=(NASTY,),
            attack_ids=(NASTY,),
        )
    ]
    evidence.edge_items = [make_edge(caller=NASTY, callee=NASTY, operation=NASTY)]
    evidence.summaries = [make_summary(0, root_service=NASTY, root_operation=NASTY)]
    span = make_span(
        0,
        service_name=NASTY,
        name=NASTY,
        status_message=NASTY,
        error=True,
        destination=NASTY,
        attributes=((NASTY, NASTY),),
    )
    evidence.traces = {trace_id_of(n): make_trace(n, spans=[span]) for n in range(3)}
    async with opened(evidence) as bench:
        for keys in [
            (),
            ("2",),
            ("y",),
            ("3",),
            ("enter",),
            ("l", "G"),
            ("y",),
            ("D",),
            ("escape",),
            ("question_mark",),
        ]:
            await bench.press(*keys)
            text = bench.text
            assert not {c for c in text if not c.isprintable() and c != "\n"}, keys
        evidence.error = QueryError(NASTY)
        await bench.press("escape", "r")
        assert not {c for c in bench.text if not c.isprintable() and c != "\n"}
        assert "[bold red]x[/]" in bench.text


async def test_questions_are_asked_on_threads_of_their_own():
    threads = set()

    class Watched(FakeEvidence):
        def _answer(self, question):
            threads.add(threading.current_thread())
            super()._answer(question)

    async with opened(Watched()) as bench:
        await bench.press("3", "enter", "D", "escape")
    assert threads
    assert threading.main_thread() not in threads


async def test_resizing_moves_the_detail_beside_and_below():
    async with opened(size=WIDE) as bench:
        pane = bench.app.screen.query_one(FindingsPane)
        beside = pane.query_one(Document).region
        assert beside.x > 0
        await bench.pilot.resize_terminal(*SMALL)
        await settle(bench.pilot)
        below = pane.query_one(Document).region
        assert below.x == 0
        assert below.y > 2
        await bench.press("G", "k")

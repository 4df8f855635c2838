"""The virtual list: it paints what is on the screen and nothing else, and its cursor stays with its row."""

import pytest
from textual.app import App, ComposeResult

from tui.line import plain
from tui.widgets.listing import Listing, NoRows


class CountedRows:
    """Rows that say which of them were painted."""

    def __init__(self, keys, *, header=True):
        self.keys = keys
        self.places = {k: i for i, k in enumerate(keys)}
        self.painted = []
        self.has_header = header

    def __len__(self):
        return len(self.keys)

    def key(self, index):
        return self.keys[index]

    def find(self, key):
        return self.places.get(key)

    def header(self, width):
        return plain("TITLE", "header") if self.has_header else None

    def line(self, index, width):
        self.painted.append(index)
        return plain(f"row {self.keys[index]} \x1b[2J[red]x[/red]")


class ListApp(App):
    CSS_PATH = "../../tui/workbench.tcss"

    def compose(self) -> ComposeResult:
        yield Listing(classes="main")

    @property
    def listing(self) -> Listing:
        return self.query_one(Listing)


def numbered(count, *, start=0):
    return CountedRows([f"{i:06}" for i in range(start, start + count)])


def screen_text(app):
    listing = app.listing
    return ["".join(s.text for s in listing.render_line(y)) for y in range(listing.size.height)]


async def test_a_hundred_thousand_rows_cost_one_screenful():
    app = ListApp()
    async with app.run_test(size=(80, 24)) as pilot:
        rows = numbered(100_000)
        app.listing.show(rows)
        app.listing.focus()
        await pilot.pause()
        assert 0 < len(rows.painted) <= 4 * 24
        assert set(rows.painted) <= set(range(24))
        rows.painted.clear()
        await pilot.press("G")
        await pilot.pause()
        assert app.listing.cursor_key == "099999"
        assert set(rows.painted) <= set(range(24)) | set(range(99_900, 100_000))
        assert len(rows.painted) <= 6 * 24
        assert "row 099999" in screen_text(app)[-1]


async def test_every_row_can_be_reached_and_the_cursor_is_always_on_the_screen():
    app = ListApp()
    async with app.run_test(size=(40, 10)) as pilot:
        app.listing.show(numbered(60))
        app.listing.focus()
        for keys, expected in [
            (["j"] * 3, 3), (["down"] * 20, 23), (["k"], 22), (["pagedown"], 31), (["G"], 59), (["j"], 59), (["pageup"], 50),
            (["g"], 0), (["k"], 0), (["end"], 59), (["home"], 0),
        ]:  # fmt: skip
            await pilot.press(*keys)
            await pilot.pause()
            assert app.listing.cursor == expected
            assert any(f"row {expected:06}" in line and line.startswith("▌") for line in screen_text(app))


async def test_the_cursor_stays_with_its_row_when_rows_come_and_go():
    app = ListApp()
    async with app.run_test(size=(40, 10)) as pilot:
        app.listing.show(numbered(50))
        app.listing.focus()
        await pilot.press(*["j"] * 20)
        line_before = app.listing.cursor - app.listing.scroll_offset.y
        app.listing.show(CountedRows([f"new{i}" for i in range(7)] + [f"{i:06}" for i in range(50)]))
        await pilot.pause()
        assert app.listing.cursor_key == "000020"
        assert app.listing.cursor == 27
        assert app.listing.cursor - app.listing.scroll_offset.y == line_before, "it has not moved on the screen"
        app.listing.show(CountedRows(["a", "b", "c"]))
        await pilot.pause()
        assert app.listing.cursor_key == "c", "its row is gone: the nearest is selected"
        app.listing.show(NoRows())
        await pilot.pause()
        assert app.query_one(Listing).cursor_key is None
        await pilot.press("j", "G", "enter", "pageup")


async def test_at_the_top_new_rows_above_are_seen():
    app = ListApp()
    async with app.run_test(size=(40, 10)) as pilot:
        app.listing.show(numbered(50))
        await pilot.pause()
        app.listing.show(CountedRows(["newest", *(f"{i:06}" for i in range(50))]))
        await pilot.pause()
        assert app.listing.cursor_key == "000000"
        assert "row newest" in screen_text(app)[1]


async def test_rows_without_a_key_are_passed_over():
    app = ListApp()
    async with app.run_test(size=(40, 10)) as pilot:
        rows = CountedRows([None, "a", None, None, "b", None])
        app.listing.show(rows)
        app.listing.focus()
        assert app.listing.cursor_key == "a"
        await pilot.press("j")
        assert app.listing.cursor_key == "b"
        await pilot.press("j")
        assert app.listing.cursor_key == "b"
        await pilot.press("g")
        assert app.listing.cursor_key == "a"


@pytest.mark.parametrize("width", [12, 40, 200])
async def test_what_is_painted_is_clean_and_exactly_as_wide_as_the_screen(width):
    app = ListApp()
    async with app.run_test(size=(width, 6)) as pilot:
        app.listing.show(numbered(3))
        await pilot.pause()
        for y in range(6):
            strip = app.listing.render_line(y)
            assert strip.cell_length == width
            assert "\x1b" not in strip.text
        if width >= 40:
            assert "[red]x[/red]" in app.listing.render_line(1).text, "markup is text"


async def test_a_click_selects_and_a_second_one_opens():
    opened = []

    class Clicked(ListApp):
        def on_listing_chosen(self, event):
            opened.append(event.key)

    app = Clicked()
    async with app.run_test(size=(40, 10)) as pilot:
        app.listing.show(numbered(5))
        await pilot.pause()
        await pilot.click(Listing, offset=(5, 3))
        await pilot.pause()
        assert app.listing.cursor == 2
        assert opened == []
        await pilot.click(Listing, offset=(5, 3))
        await pilot.pause()
        assert opened == ["000002"]
        await pilot.click(Listing, offset=(5, 0))
        await pilot.click(Listing, offset=(5, 9))
        await pilot.pause()
        assert app.listing.cursor == 2, "titles and the empty part below are no rows"

"""What the signs on the screens mean."""

from collections.abc import Iterator

from tui.document import Block
from tui.syntax import HELP
from tui.views.findings import NEW_MARK, SEVERITY_GLYPHS
from tui.views.waterfall import BAR_LEGEND, STAMP_LEGEND, WITNESS_LEGEND


def blocks() -> Iterator[Block]:
    """Every sign with its meaning, and the search's syntax."""
    yield Block("", "Signs of findings", "header")
    yield from (Block(glyph, f" {severity}") for severity, glyph in SEVERITY_GLYPHS.items())
    yield Block(NEW_MARK, " new since the workbench was opened, not yet looked at")
    for title, legend in (
        ("Witnesses of a call (CcsS)", WITNESS_LEGEND),
        ("Stamp and hash (ST)", STAMP_LEGEND),
        ("Bars and marks", BAR_LEGEND),
        ("Searching traces", HELP),
    ):
        yield Block("", "")
        yield Block("", title, "header")
        yield from (Block(sign, f" {meaning}") for sign, meaning in legend)

# ruff: noqa: INP001 - a script, not a package
"""Draw the README's pictures of the workbench with the tests' fixed data: `make picture`."""

import asyncio
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = (120, 32)
PICTURES = {
    "workbench.svg": ((), "provenance tui http://127.0.0.1:4318"),
    "trace.svg": (("down", "down", "enter"), "the trace behind a finding"),
}
"""File, the keys that lead to its screen, its title."""


async def draw(keys: tuple[str, ...], title: str) -> str:
    """The screen that these keys lead to, as SVG in the reader's own monospace font."""
    from tests.tui.factories import FakeEvidence, clock
    from tui.app import Workbench

    app = Workbench(FakeEvidence(), clock=clock, refresh_seconds=3600.0)
    async with app.run_test(size=SIZE) as pilot:
        for key in (None, *keys):
            if key is not None:
                await pilot.press(key)
            for _ in range(3):  # the answer to one question may ask the next
                await app.workers.wait_for_complete()
                await pilot.pause()
        svg = app.export_screenshot(title=title)
    # Readers of a README load no fonts from elsewhere.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for name, (keys, title) in PICTURES.items():
        target = ROOT / "docs" / name
        target.write_text(asyncio.run(draw(keys, title)), encoding="utf-8")
        print(f"wrote {target.relative_to(ROOT)}")

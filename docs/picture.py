# ruff: noqa: INP001 - a script, not a package
"""Draw `docs/workbench.svg` for the README: the workbench with the tests' fixed data. Run from the repository's root."""

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = (120, 32)


async def picture() -> str:
    """The waterfall of a call that went around the mesh, as SVG."""
    from tests.tui.factories import FakeEvidence, clock
    from tui.app import Workbench

    app = Workbench(FakeEvidence(), clock=clock, refresh_seconds=3600.0)
    async with app.run_test(size=SIZE) as pilot:
        for key in (None, "down", "down", "enter"):
            if key is not None:
                await pilot.press(key)
            for _ in range(3):  # the answer to one question may ask the next
                await app.workers.wait_for_complete()
                await pilot.pause()
        return app.export_screenshot(title="provenance tui http://127.0.0.1:4318")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    target = ROOT / "docs" / "workbench.svg"
    target.write_text(asyncio.run(picture()), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")

"""The workbench as a child that has the terminal, while the mesh runs behind it."""

import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from collector.demo.processes import DemoError, describe_exit, tethered

LOOK_SECONDS: Final = 0.5
RESET_TERMINAL: Final = "\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?7h\x1b[?1000;1002;1003;1004;1006;1015;2004l\x1b[0m"
"""Plain keyboard and screen, cursor and line wrap, no mouse, focus or paste reports: undo what an application killed halfway left."""


def run(url: str, check: Callable[[], None]) -> int:
    """Open the workbench on `url` and return its exit status; whatever `check` raises ends it first.

    It is a process of its own because this package must not import the workbench, and it stays in our process group, because the
    terminal belongs to that.
    """
    settings = termios.tcgetattr(sys.stdin)
    argv = tethered([sys.executable, "-m", "provenance.cli", "tui", url], signal.SIGTERM)
    with subprocess.Popen(argv) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    status = process.wait(LOOK_SECONDS)
                    break
                check()
        except BaseException:
            process.terminate()
            _end(process)
            _restore(settings)
            raise
    if status < 0:
        _restore(settings)
        raise DemoError(f"the workbench ended {describe_exit(status)}")
    return status


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(3.0)
    except subprocess.TimeoutExpired:
        process.kill()


def _restore(settings: Any) -> None:
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
    sys.stdout.write(RESET_TERMINAL)
    sys.stdout.flush()

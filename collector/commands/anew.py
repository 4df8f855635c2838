"""The last resort of a process that answers questions: to start anew, as it was started.

A query that heeds no interrupt cannot be ended: it runs on a thread inside a library. The kernel ends all of them at once when the
process executes its own program again; the process's id, its environment and what supervises it stay. Everything acknowledged is in
the tables or in the journal, as after a crash.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_OPEN_FILES: Final = Path("/dev/fd")

_STDERR: Final = 2

_EXIT_CODE: Final = 70
"""EX_SOFTWARE of sysexits.h: for whoever supervises, where the program cannot be executed again."""


def start_anew(reason: str) -> None:
    """Execute this program again with its arguments, from whatever thread; does not return.

    No file or socket goes along but stdin, stdout and stderr: the file's lock is given up, and the ports are free.
    """
    _log.critical("%s: starting anew; everything acknowledged is kept", reason)
    try:
        for entry in _OPEN_FILES.iterdir():
            _close_at_start(int(entry.name))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 this very program, as it was started
    except OSError:
        _log.critical("%s cannot be executed again", sys.executable, exc_info=True)
    os._exit(_EXIT_CODE)


def _close_at_start(descriptor: int) -> None:
    if descriptor <= _STDERR:
        return
    try:
        os.set_inheritable(descriptor, False)
    except OSError:  # closed meanwhile, such as the one that the directory was read with
        return

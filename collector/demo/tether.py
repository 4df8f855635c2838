"""Run a program that dies with its parent: `python tether.py PARENT_PID SIGNAL PROGRAM [ARGUMENT...]`.

Linux delivers the signal when the parent is gone, even after `kill -9`, and keeps the wish across exec. Doing it here and not in
`subprocess`'s preexec_fn keeps Python code out of the moment between fork and exec, where threads make it unsafe.
"""

import ctypes
import os
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def main() -> None:
    """Tie this process to its parent and become the program."""
    parent, signal_number, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the wish was made
        sys.exit("the parent is gone")
    os.execvp(program[0], program)  # noqa: S606 becoming it is the purpose


if __name__ == "__main__":
    main()

"""Become a program of a pod: `python enter.py NAMESPACE UID CGROUP|- PROGRAM [ARGUMENT...]`, started by root.

Enters the network namespace, then the control group, then drops to the user, and becomes the program. One capability stays,
CAP_DAC_READ_SEARCH: an installation below /root would be out of the user's reach otherwise. It reads files and has no part in what is
asked of the network.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000  # sched.h
CAP_DAC_READ_SEARCH: Final = 2  # linux/capability.h
_PR_SET_KEEPCAPS: Final = 8  # linux/prctl.h
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522


def main() -> None:
    """Enter and become."""
    namespace, uid, cgroup, program = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    if cgroup != "-":
        (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    libc = ctypes.CDLL(None, use_errno=True)
    opened = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    _call(libc.setns(opened, CLONE_NEWNET), f"setns {namespace}")
    _call(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    mask = 1 << CAP_DAC_READ_SEARCH
    header, data = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", mask, mask, mask, 0, 0, 0)
    _call(libc.capset(header, data), "capset")
    _call(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0), "prctl")
    os.execvp(program[0], program)  # noqa: S606 becoming it is the purpose


def _call(status: int, what: str) -> None:
    if status:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()

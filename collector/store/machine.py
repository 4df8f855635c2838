"""How much memory there is for this process: the machine's, or less where its control group (a container's limit) has less."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")
_UNIFIED: Final = ("sys/fs/cgroup", "memory.max")
_LEGACY: Final = ("sys/fs/cgroup/memory", "memory.limit_in_bytes")


def memory_bytes(root: Path = _ROOT) -> int:
    """Bytes; `root` is where /proc and /sys are."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """The limits of this process's control groups and of those that they are in; a group that has none says no number."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            mounted, name = _UNIFIED
        elif "memory" in controllers.split(","):
            mounted, name = _LEGACY
        else:
            continue
        # In a container the path may be that of the host, which is not there: the group at the top is its own.
        group = PurePosixPath(path)
        for at in (group, *group.parents):
            limit = (_text(root / mounted / str(at).lstrip("/") / name) or "").strip()
            if limit.isascii() and limit.isdigit() and int(limit):
                yield int(limit)


def _text(path: Path) -> str | None:
    """None where it cannot be read: other systems have no control groups, and the group at the top has no limit."""
    try:
        # UTF-8: every other codec is a module to be imported, and the interpreter's own folders may be closed to this user.
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None

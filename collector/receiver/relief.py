"""Memory that was freed and is still held, and code that is mapped and not used, goes back to the machine, when it is much.

What 16 senders of bombs made a C library allocate in small pieces stays with the process when it is freed: the next large
requests come on top of it. Asking glibc for it costs some milliseconds, so it is asked only above what full load needs.

Starting, and many a question, touch code that ingesting never needs: its pages go back to the machine's cache of files.
"""

import time
from typing import Final

from collector.receiver.health import rss_bytes
from collector.store.memory import give_back, give_back_code, mapped_bytes

ENOUGH_BYTES: Final = 220_000_000
"""What the process may hold without being asked: about what full load of ordinary requests needs, which being asked costs nothing that can be measured."""

AGAIN_SECONDS: Final = 1.0
USELESS_SECONDS: Final = 20.0
"""How long not to ask again where asking gave little back, unless the process has grown since."""

CODE_BYTES: Final = 80_000_000
"""Pages of libraries that may stay mapped: full load needs some 55 MB of them, and starting leaves 100."""

CODE_AGAIN_SECONDS: Final = 60.0

_LITTLE_BYTES: Final = 20_000_000
_MUCH_BYTES: Final = 40_000_000


class Relief:
    """Call `look` every half a second or so."""

    def __init__(self) -> None:
        self._next = 0.0
        self._useless_until = 0.0
        self._left = 0
        self._code_next = 0.0

    def look(self) -> int:
        """How many bytes of freed memory went back, 0 where none were asked for."""
        now = time.monotonic()
        if now >= self._code_next and mapped_bytes() > CODE_BYTES:
            give_back_code()
            self._code_next = now + CODE_AGAIN_SECONDS
        held = rss_bytes() or 0
        if held <= ENOUGH_BYTES or now < self._next:
            return 0
        if now < self._useless_until and held < self._left + _MUCH_BYTES:
            return 0
        give_back()
        self._left = rss_bytes() or 0
        given = max(0, held - self._left)
        self._next = now + AGAIN_SECONDS
        self._useless_until = 0.0 if given > _LITTLE_BYTES else now + USELESS_SECONDS
        return given

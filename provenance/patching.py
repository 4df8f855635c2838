"""One replaced attribute of somebody else's class or module, that can be put back."""

from collections.abc import Callable
from typing import Any

from provenance.forks import Lock

_lock = Lock()


class Patch:
    """Replaces `owner.name` by what `wrap(original, patch)` returns, until `restore()`.

    Somebody may have wrapped our replacement meanwhile; then taking it out would take theirs out too. So `restore()`
    leaves it in place in that case, and every replacement asks `active` first and hands on to the original if not.
    """

    __slots__ = ("_name", "_original", "_owner", "_replacement", "_wrap", "active")

    def __init__(self, owner: Any, name: str, wrap: Callable[[Any, "Patch"], Any]) -> None:
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._original: Any = None
        self._replacement: Any = None
        self.active = False

    def apply(self) -> None:
        """Put the replacement in place; a second time does nothing."""
        with _lock:
            if self.active:
                return
            self.active = True
            if self._replacement is not None:
                return  # still in place beneath somebody's wrapper
            self._original = getattr(self._owner, self._name)
            self._replacement = self._wrap(self._original, self)
            setattr(self._owner, self._name, self._replacement)

    def restore(self) -> None:
        """Put the original back, or where somebody wrapped the replacement, let it do nothing."""
        with _lock:
            self.active = False
            if self._replacement is not None and getattr(self._owner, self._name) is self._replacement:
                setattr(self._owner, self._name, self._original)
                self._original = self._replacement = None

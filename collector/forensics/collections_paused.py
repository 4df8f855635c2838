"""Python's search for circles of objects, paused while very many objects without any are made.

The search looks through all objects that live again and again while their number grows: taking eighty thousand spans apart takes half as long
again with it, in a process that has loaded the statements' compiler. Counting references frees everything here without it.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collections_paused() -> Iterator[None]:
    """No search for circles meanwhile, in any thread; memory that this process holds in circles is freed later.

    Of several at one time the first that ends lets the search go on: it is never left off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

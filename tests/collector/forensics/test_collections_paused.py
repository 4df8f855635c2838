"""The search for circles is paused while spans are taken apart, and goes on afterwards, whatever happens."""

import gc
from collections.abc import Iterator

import polars as pl
import pytest

from collector.forensics import anatomy
from collector.forensics.collections_paused import collections_paused


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_it_is_paused_and_goes_on() -> None:
    with collections_paused():
        assert not gc.isenabled()
        with collections_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(ValueError, match="broken"), collections_paused():
        raise ValueError("broken")
    assert gc.isenabled()


def test_two_threads_in_any_order_leave_it_on() -> None:
    first, second = collections_paused(), collections_paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_who_has_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    with collections_paused():
        pass
    assert not gc.isenabled()


def test_windows_are_taken_apart_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def by_trace(_: pl.DataFrame) -> Iterator[list[object]]:
        seen.append(gc.isenabled())
        return iter(())

    monkeypatch.setattr(anatomy, "_by_trace", by_trace)
    anatomy.take_apart_windows([pl.DataFrame()])
    assert seen == [False]
    assert gc.isenabled()

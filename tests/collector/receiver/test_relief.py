"""Freed memory that is still held is asked for, above what full load needs and not all the time."""

import pytest

from collector.receiver import relief

MB = 1_000_000


class Machine:
    """A process that holds so much, of which a part is free."""

    def __init__(self, held: int, free: int) -> None:
        self.held, self.free, self.now, self.asked = held, free, 100.0, 0
        self.mapped, self.code_asked = 50 * MB, 0

    def rss_bytes(self) -> int:
        return self.held

    def give_back(self) -> None:
        self.asked += 1
        self.held, self.free = self.held - self.free, 0

    def mapped_bytes(self) -> int:
        return self.mapped

    def give_back_code(self) -> None:
        self.code_asked += 1

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(600 * MB, 400 * MB)
    monkeypatch.setattr(relief, "rss_bytes", made.rss_bytes)
    monkeypatch.setattr(relief, "give_back", made.give_back)
    monkeypatch.setattr(relief, "mapped_bytes", made.mapped_bytes)
    monkeypatch.setattr(relief, "give_back_code", made.give_back_code)
    monkeypatch.setattr(relief, "time", made)
    return made


def test_much_that_is_held_is_given_back(machine: Machine) -> None:
    assert relief.Relief().look() == 400 * MB


def test_what_full_load_needs_is_left_alone(machine: Machine) -> None:
    machine.held = 200 * MB

    assert relief.Relief().look() == 0
    assert machine.asked == 0


def test_where_nothing_comes_back_it_is_not_asked_again_for_a_while(machine: Machine) -> None:
    machine.free = 0
    looking = relief.Relief()
    for _ in range(10):
        looking.look()
        machine.now += 0.5
    assert machine.asked == 1

    machine.now += relief.USELESS_SECONDS
    looking.look()
    assert machine.asked == 2


def test_where_nothing_came_back_it_is_asked_again_once_the_process_has_grown(machine: Machine) -> None:
    machine.free = 0
    looking = relief.Relief()
    looking.look()
    machine.held, machine.free, machine.now = 700 * MB, 100 * MB, machine.now + 1.5

    assert looking.look() == 100 * MB


def test_where_much_came_back_it_is_asked_again_soon(machine: Machine) -> None:
    looking = relief.Relief()
    assert looking.look()
    machine.held, machine.free, machine.now = 600 * MB, 300 * MB, machine.now + 1.5

    assert looking.look() == 300 * MB


def test_without_proc_nothing_is_asked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "rss_bytes", lambda: None)

    assert relief.Relief().look() == 0


def test_code_that_starting_needed_goes_back_at_the_first_look_and_then_once_a_minute(machine: Machine) -> None:
    machine.held = 160 * MB
    looking = relief.Relief()
    looking.look()
    assert machine.code_asked == 0, "what full load needs stays"

    machine.mapped = 100 * MB
    for _ in range(10):
        looking.look()
        machine.now += 0.5
    assert machine.code_asked == 1

    machine.now += relief.CODE_AGAIN_SECONDS
    looking.look()
    assert machine.code_asked == 2

"""One line a record, and never a million of the same."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from collector.logs import BURST, OVERALL, WINDOW_SECONDS, Repetition, configure


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def root() -> Iterator[None]:
    """Gives the root logger back as it was."""
    logger = logging.getLogger()
    before, level = list(logger.handlers), logger.level
    yield
    logging.captureWarnings(capture=False)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    for handler in before:
        logger.addHandler(handler)
    logger.setLevel(level)


def written(form: str, level: str = "info") -> tuple[io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    configure(form, level, stream=stream, repetition=Repetition(clock))  # type: ignore[arg-type]
    return stream, clock


@pytest.mark.usefixtures("root")
def test_a_record_is_one_line_of_text() -> None:
    stream, _ = written("text")
    logging.getLogger("a.b").warning("x=%s", "one\ntwo\x1b[31m")

    [line] = stream.getvalue().splitlines()
    assert "Z WARNING a.b: x=one\\x0atwo\\x1b[31m" in line


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_stays_in_its_line(form: str) -> None:
    stream, _ = written(form)
    try:
        int("broken\nhere")
    except ValueError:
        logging.getLogger("a").exception("failed")

    [line] = stream.getvalue().splitlines()
    assert "Traceback" in line
    assert "ValueError: invalid" in line


@pytest.mark.usefixtures("root")
def test_a_record_is_one_json_object() -> None:
    stream, _ = written("json")
    logging.getLogger("a.b").error('"%s"', "\n\udcff\x85")

    record = json.loads(stream.getvalue())
    assert (record["level"], record["logger"], record["message"]) == ("error", "a.b", '"\n\udcff\x85"')
    assert record["time"].endswith("Z")
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.usefixtures("root")
def test_a_million_of_the_same_are_a_few_and_a_number() -> None:
    stream, clock = written("text")
    log = logging.getLogger("store")
    for n in range(1000):
        log.error("%s bytes were not written", n)
        log.error(f"disk full: {n} bytes")  # noqa: G004 - what differs in numbers alone is alike, too
    log.error("something else")
    assert len(stream.getvalue().splitlines()) == 2 * BURST + 1

    clock.now += WINDOW_SECONDS
    log.error("%s bytes were not written", 7)
    last = stream.getvalue().splitlines()[-1]
    assert (
        f"7 bytes were not written ({1000 - BURST} more like this and {2000 - 2 * BURST} records in all were left out)"
        in last
    )
    log.error("something else")
    assert stream.getvalue().splitlines()[-1].endswith("something else")


def test_variable_messages_are_limited_together() -> None:
    clock = Clock()
    repetition = Repetition(clock)
    keys = [("a", logging.ERROR, "x" * n) for n in range(5000)]

    assert sum(repetition.admit(key) is not None for key in keys) == OVERALL
    clock.now += WINDOW_SECONDS
    admitted = repetition.admit(("b", 0, "y"))
    assert admitted is not None
    assert admitted.in_all == 5000 - OVERALL
    assert len(repetition._buckets) <= 512


@pytest.mark.usefixtures("root")
def test_levels_and_the_loggers_of_servers() -> None:
    stream, _ = written("text", "info")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("a").debug("no")
    logging.getLogger("a").info("yes")

    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == [
        "Invalid HTTP request received.",
        "yes",
    ]


@pytest.mark.usefixtures("root")
def test_a_message_that_does_not_fit_its_arguments_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream, _ = written("json")
    logging.getLogger("a").error("%s %s", *range(1))
    logging.getLogger("a").error("next")

    assert json.loads(stream.getvalue())["message"] == "next"
    assert "not enough arguments" in capsys.readouterr().err

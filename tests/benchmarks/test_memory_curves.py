"""What the soak says of its samples: slope, sparkline, picture; and that the sampler keeps its beat."""

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.curves import BLOCKS, Line, slope, sparkline, svg
from tests.benchmarks.soak import Sample, curve, picture, sample, sampled


@given(
    st.lists(st.integers(0, 10_000), min_size=2, max_size=60, unique=True), st.integers(-50, 50), st.integers(0, 1000)
)
def test_the_slope_of_a_straight_line_is_its_slope(times: list[int], steep: int, high: int) -> None:
    assert slope(times, [high + steep * t for t in times]) == pytest.approx(steep)


def test_the_slope_is_that_of_the_least_squares() -> None:
    assert slope([0, 1, 2, 3], [0, 2, 1, 3]) == pytest.approx(0.8)


@pytest.mark.parametrize("times", [[], [5.0], [5.0, 5.0]])
def test_where_there_is_no_line_there_is_no_slope(times: list[float]) -> None:
    assert slope(times, [1.0, 9.0][: len(times)]) == 0


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([], 10, ""),
        ([5.0, 5.0, 5.0], 10, "▁▁▁"),
        (list(range(8)), 8, BLOCKS),
        ([0.0, 0.0, 9.0, 0.0, 0.0, 0.0], 3, "▁█▁"),  # a peak stays, however few characters there are
    ],
)
def test_sparkline(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width) == shown


@given(st.lists(st.floats(0, 1e6), max_size=300), st.integers(1, 80))
def test_a_sparkline_is_never_too_long(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(width, len(values))


def test_the_picture_has_every_point_inside_and_the_names_escaped() -> None:
    root = ET.fromstring(svg("a < b & c", [0.0, 1.0, 2.0], [Line("x<y", "red", [0.0, 50.0, 100.0])]))

    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b & c", "x<y", "100 MB", "2 s"} <= set(texts)
    [polyline] = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in polyline.attrib["points"].split()]
    assert len(points) == 3
    assert all(0 <= x <= 720 and 0 <= y <= 240 for x, y in points)
    assert points[0][1] > points[1][1] > points[2][1]  # more is higher


def steady(minutes: int) -> list[Sample]:
    """100 MB more in the first minute, then 6 MB a minute, of which a third is no file's."""
    return [
        Sample(float(s), 300 + s / 10 if s >= 60 else 200 + s, 100 + s / 30, 0.0, 0.0) for s in range(minutes * 60 + 1)
    ]


def test_the_first_minute_is_left_out_of_the_slope() -> None:
    found = curve(steady(10))

    assert found["rss_slope_mb_per_min"] == pytest.approx(6)
    assert found["anonymous_slope_mb_per_min"] == pytest.approx(2)
    assert found["peak_rss_mb"] == 360
    assert found["slope_after_s"] == 60


def test_of_a_short_run_a_quarter_is_left_out() -> None:
    assert curve(steady(1))["slope_after_s"] == 15


def test_a_leak_is_in_the_picture() -> None:
    points = [{"seconds": float(s), "rss_mb": 100.0 + s, "anonymous_mb": 50.0} for s in range(10)]
    memory = {"peak_rss_mb": 109.0, "rss_slope_mb_per_min": 60.0}

    text = picture({"curve": points, "memory": memory, "load": {"spans_per_s": 123_456}})

    assert "123,456 spans/s: peak 109 MB, +60.00 MB/min" in text
    ET.fromstring(text)


def test_the_sampler_reads_this_process_until_it_is_over(tmp_path: Path) -> None:
    db = tmp_path / "e.duckdb"
    db.write_bytes(b"1" * 600_000)
    (tmp_path / "e.duckdb.wal").write_bytes(b"1" * 400_000)
    goes_on = iter([True, True, False])

    samples = sampled(lambda: sample(os.getpid(), db, 0.0), lambda: next(goes_on), every_s=0.01)

    assert len(samples) == 3
    assert [s.seconds for s in samples] == sorted(s.seconds for s in samples)
    assert all(10 < s.anonymous_mb < s.rss_mb for s in samples)
    assert all(s.file_mb == 1.0 for s in samples)
    assert samples[-1].cpu_seconds > 0

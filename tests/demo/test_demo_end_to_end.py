"""The demo from the outside: a real mesh, four incidents, exactly four findings, and nothing left behind."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector.client import Source, open_source
from collector.errors import SourceUnreachableError

ROOT = Path(__file__).parents[2]
NAMES = ["bypass", "egress", "rogue", "slow"]
UP = b"the mesh is up"
STARTED_BY_THE_DEMO = ("examples/mesh/", "_bin/envoy", "provenance.cli collect", "provenance.cli tui")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


# With nothing else on the machine, which would be slow for a reason that nobody planted.
alone = pytest.mark.demo


def command(tmp_path, *arguments):
    return [sys.executable, "-m", "provenance.cli", "demo", "--db", str(tmp_path / "evidence.duckdb"), *arguments]


def environment(tmp_path):
    """TMPDIR: so that a test sees whatever a run leaves in the temporary folder."""
    scratch = tmp_path / "tmp"
    scratch.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch)}


def processes_with(tmp_path):
    """Command lines of this machine's processes that belong to a run in `tmp_path`: each inherited its TMPDIR."""
    mark = f"TMPDIR={tmp_path / 'tmp'}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            try:
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has just ended, or is somebody else's
    return found


def leftovers(tmp_path):
    """Files in the temporary folder, as relative paths."""
    return sorted(str(p.relative_to(tmp_path / "tmp")) for p in (tmp_path / "tmp").rglob("*"))


def wait_for(condition, what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.05)


def reopened(path):
    """The evidence, once nobody holds it: a process that ends loses its command line a moment before its locks."""

    def free():
        try:
            opened.append(open_source(str(path)))
        except SourceUnreachableError as error:
            if "held by another process" not in str(error):
                raise
        return opened

    opened: list[Source] = []
    wait_for(free, "end of the collector's lock", seconds=20)
    return opened[0]


@contextmanager
def running(argv, tmp_path, **options):
    """The demo as a process that does not outlive the test, however that ends."""
    with subprocess.Popen(argv, cwd=ROOT, **{"env": environment(tmp_path), **options}) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                demo.terminate()


def run(tmp_path, *arguments):
    argv = command(tmp_path, "--headless", *arguments)
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=ROOT, env=environment(tmp_path), timeout=240, check=False
    )


def judged(tmp_path, *arguments):
    """A run of the demo, and another one where the mesh itself became slow for some seconds: that is found, and on a shared machine rightly."""
    finished = run(tmp_path, "--format", "json", "--duration", "30s", *arguments)
    found = json.loads(finished.stdout or "{}")
    kinds = {finding["finding_id"]: finding["kind"] for finding in found.get("findings", ())}
    is_complete = all(incident["found"] for incident in found.get("incidents", ()))
    if is_complete and {kinds[i] for i in found.get("unexpected", ())} == {"latency"}:
        (tmp_path / "evidence.duckdb").unlink()
        finished = run(tmp_path, "--format", "json", "--duration", "30s", *arguments)
    return finished


@alone
def test_every_planted_incident_is_found_and_nothing_else(tmp_path):
    finished = judged(tmp_path)
    assert finished.stdout, finished.stderr
    result = json.loads(finished.stdout)
    assert finished.returncode == 0, f"{finished.stderr}\n{finished.stdout}"
    assert result["ok"] is True
    assert sorted(i["name"] for i in result["incidents"] if i["found"]) == NAMES
    assert result["unexpected"] == []
    assert {i for incident in result["incidents"] for i in incident["finding_ids"]} == {
        finding["finding_id"] for finding in result["findings"]
    }
    assert all(finding["trace_ids"] for finding in result["findings"])
    assert processes_with(tmp_path) == []
    assert leftovers(tmp_path) == []
    assert "0 failed" in finished.stderr
    source = open_source(result["database"])  # the collector let go of it, and what it acknowledged is there
    services = source.query("SELECT DISTINCT service_name FROM spans ORDER BY 1")["service_name"].to_list()
    source.close()
    assert services == ["checkout", "gateway", "inventory", "payment", "pricing"]


@alone
def test_a_mesh_without_incidents_has_no_findings(tmp_path):
    finished = judged(tmp_path, "--incidents", "none")
    assert finished.returncode == 0, f"{finished.stderr}\n{finished.stdout}"
    result = json.loads(finished.stdout)
    assert (result["findings"], result["incidents"], result["ok"]) == ([], [], True)
    source = open_source(result["database"])
    assert source.query("SELECT count(*) AS n FROM spans").item() > 1000
    source.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_half_way_nothing_keeps_running(tmp_path, number):
    argv = command(tmp_path, "--headless", "--duration", "10m")
    with running(argv, tmp_path, stderr=subprocess.PIPE) as demo:
        for line in demo.stderr:
            if UP in line:
                break
        wait_for(lambda: demo.poll() is not None or any("load.py" in p for p in processes_with(tmp_path)), "load")
        started = processes_with(tmp_path)
        assert all(any(part in p for p in started) for part in STARTED_BY_THE_DEMO[:3])
        demo.send_signal(number)
        said = demo.stderr.read().decode()
    wait_for(lambda: processes_with(tmp_path) == [], "end of every process")
    source = reopened(tmp_path / "evidence.duckdb")
    spans = source.query("SELECT count(*) AS n FROM spans").item()
    source.close()
    if number == signal.SIGKILL:
        assert demo.returncode == -signal.SIGKILL
    else:
        assert spans > 0  # the services were asked to end, and so had the time to send
        assert demo.returncode == 128 + number
        assert f"stopped by {number.name}" in said
        assert leftovers(tmp_path) == []


def test_on_a_terminal_the_workbench_opens_and_leaving_it_stops_the_mesh(tmp_path):
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    settings = termios.tcgetattr(terminal)
    argv = command(tmp_path, "--duration", "30s", "--incidents", "none")
    values = {**environment(tmp_path), "TERM": "xterm-256color"}
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with running(argv, tmp_path, **streams, env=values, start_new_session=True) as demo:
        seen = read_until(screen, lambda text: b"\x1b[?1049h" in text and b"Findings" in text)
        assert UP in seen
        assert any("provenance.cli tui" in p for p in processes_with(tmp_path))
        os.write(screen, b"q")
        rest = read_until(screen, lambda _: demo.poll() is not None)
    assert demo.returncode == 0, rest
    assert processes_with(tmp_path) == []
    assert leftovers(tmp_path) == []
    assert termios.tcgetattr(terminal) == settings
    assert b"evidence.duckdb" in rest
    os.close(screen)
    os.close(terminal)


def read_until(screen, done, seconds=90.0):
    """Everything the terminal showed until `done(text)`."""
    text, deadline = b"", time.monotonic() + seconds
    while not done(text):
        assert time.monotonic() < deadline, text[-2000:]
        if select.select([screen], [], [], 0.1)[0]:
            text += os.read(screen, 65536)
    return text

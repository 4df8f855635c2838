"""A real `provenance collect` on free ports, and the JavaScript exporters' packages."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

DEADLINE_S = 60
HERE = Path(__file__).parent
NODE_MAJOR = 18
"""What the pinned exporters say of themselves in `engines`."""


@dataclass
class Collector:
    process: subprocess.Popen
    url: str
    grpc: str
    db: Path

    def stop(self):
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


@contextmanager
def running_collector(directory, *flags):
    """Yields once it listens; kills it if the test has not stopped it."""
    db, ready, said = directory / "evidence.duckdb", directory / "ready.json", directory / "stderr"
    command = Path(sys.executable).with_name("provenance")
    argv = [command, "collect", "--db", db, "--grpc-port", "0", "--http-port", "0", "--ready-file", ready, *flags]
    with said.open("w") as stderr:
        process = subprocess.Popen(argv, stderr=stderr)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not ready.exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        told = json.loads(ready.read_text())
        yield Collector(process, f"http://127.0.0.1:{told['http_port']}", f"127.0.0.1:{told['grpc_port']}", db)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(DEADLINE_S)


def wait_for(what):
    """The first true answer."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.05)
    return found


def javascript_modules():
    """A directory with the packages of `package-lock.json`, installed once a lock file in the user's cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed: the JavaScript exporters are not tested")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MAJOR:
        pytest.skip(f"node {version} is too old for the JavaScript exporters: they need {NODE_MAJOR} or later")
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesh-provenance"
    installed = cache / f"otlp-clients-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not installed.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _install(npm, cache, installed)
    return installed


def _install(npm, cache, installed):
    """Beside its place and then moved, so that it is there whole or not at all, whoever else installs it meanwhile."""
    with tempfile.TemporaryDirectory(dir=cache) as beside:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, beside)
        argv = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        finished = subprocess.run(
            argv, cwd=beside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
        )
        assert finished.returncode == 0, f"npm ci failed:\n{finished.stdout}"
        try:
            Path(beside).rename(installed)
        except OSError:
            assert installed.exists()
        else:
            Path(beside).mkdir()  # for the context manager to remove

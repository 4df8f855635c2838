"""Processes: an early death is an error that shows the log, everything stops, and nothing outlives a killed parent."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from collector.demo.ports import Reservation
from collector.demo.processes import Children, DemoError, describe_exit, tail
from collector.demo.resources import child_environment, mesh_directory, service_environment
from collector.demo.signals import InterruptedBySignal, raised
from collector.errors import ConfigError

DEADLINE_SECONDS = 20.0
SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


def python(code):
    return [sys.executable, "-I", "-S", "-c", code]


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_SECONDS} s"
        time.sleep(0.01)


def is_gone(pid):
    """Ended; a zombie counts, since whoever inherits an orphan may be slow to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_a_child_that_dies_is_reported_with_the_end_of_its_log(tmp_path):
    with Children(tmp_path) as children:
        children.start("healthy", python(SLEEP), os.environ)
        children.start("broken", python("print('cannot bind port 1'); raise SystemExit(3)"), os.environ)
        with pytest.raises(DemoError, match=r"broken ended with exit status 3\n +cannot bind port 1"):
            children.wait_until(lambda: False, "never", DEADLINE_SECONDS)


@pytest.mark.slow
def test_waiting_in_vain_says_for_what(tmp_path):
    with Children(tmp_path) as children:
        children.start("healthy", python(SLEEP), os.environ)
        with pytest.raises(DemoError, match=r"waited 0\.1 s for the moon"):
            children.wait_until(lambda: False, "the moon", 0.1)


@pytest.mark.slow
def test_leaving_the_block_stops_children_whatever_happened(tmp_path):
    children = Children(tmp_path)
    child = children.start("healthy", python(SLEEP), os.environ)
    with pytest.raises(ZeroDivisionError), children:
        _ = 1 / 0
    assert child.process.poll() == -signal.SIGTERM


@pytest.mark.slow
def test_a_child_that_ignores_sigterm_is_killed_and_named(tmp_path):
    with Children(tmp_path) as children:
        child = children.start("stubborn", python(STUBBORN), os.environ)
        children.wait_until(lambda: "deaf" in child.log.read_text(), "the child", DEADLINE_SECONDS)
        assert children.stop(["stubborn", "unknown"], grace_seconds=0.1) == ["stubborn"]
        assert child.process.poll() == -signal.SIGKILL
        children.check()  # a child that was stopped is no longer expected to run


@pytest.mark.slow
def test_children_end_when_the_parent_is_killed(tmp_path):
    """kill -9 leaves the parent no chance to clean up: the kernel does it."""
    program = f"""
        import os, signal, sys, time
        from pathlib import Path
        from collector.demo.processes import Children
        children = Children(Path({str(tmp_path)!r}))
        sleeping = [{sys.executable!r}, "-c", "import time; print('up', flush=True); time.sleep(600)"]
        killed = children.start("killed", sleeping, os.environ)
        terminated = children.start("terminated", sleeping, os.environ, if_orphaned=signal.SIGTERM)
        while not (killed.log.read_text() and terminated.log.read_text()):
            children.check()
            time.sleep(0.01)
        print(killed.process.pid, terminated.process.pid, flush=True)
        time.sleep(600)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pids = [int(text) for text in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(map(is_gone, pids))
        parent.kill()
    wait_for(lambda: all(map(is_gone, pids)), "end of the orphans")


def test_exit_statuses_read_as_words():
    assert describe_exit(3) == "with exit status 3"
    assert describe_exit(-9) == "by SIGKILL"


def test_the_tail_is_short_and_never_empty(tmp_path):
    log = tmp_path / "x.log"
    log.write_bytes(b"\xff\n" + b"\n".join(b"line %d" % i for i in range(100)))
    assert tail(log, lines=2) == "    line 98\n    line 99"
    log.write_text("")
    assert "printed nothing" in tail(log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_ending_signal_is_one_exception_and_handlers_come_back(number):
    before = signal.getsignal(number)

    def stop_impatiently():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # the second one must not stop the stopping

    with pytest.raises(InterruptedBySignal) as caught, raised():
        stop_impatiently()
    assert caught.value.exit_status == 128 + number
    assert signal.getsignal(number) is before


def test_reserved_ports_differ_and_nobody_else_draws_them():
    with Reservation() as reservation:
        ports = reservation.take_all("127.0.0.1", 200)
        assert len(set(ports)) == 200
        strangers = []
        for _ in range(200):
            stranger = socket.socket()
            stranger.bind(("127.0.0.1", 0))
            strangers.append(stranger)
        drawn = {stranger.getsockname()[1] for stranger in strangers}
        for stranger in strangers:
            stranger.close()
        assert drawn.isdisjoint(ports)


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_the_owner_listens_on_a_reserved_port_and_gets_every_connection(option):
    with Reservation() as reservation:
        port = reservation.take("127.0.0.7")
        with socket.socket() as owner:
            owner.setsockopt(socket.SOL_SOCKET, option, 1)
            owner.bind(("127.0.0.7", port))
            owner.listen()
            for _ in range(20):
                with socket.create_connection(("127.0.0.7", port), timeout=5.0):
                    connection, _ = owner.accept()
                    connection.close()


def test_the_services_are_found_in_a_checkout_and_in_a_wheel(tmp_path):
    assert (mesh_directory() / "shop_pb2.py").is_file()
    installed = tmp_path / "mesh"
    installed.mkdir()
    (installed / "gateway.py").touch()
    assert mesh_directory((tmp_path / "no checkout", installed)) == installed
    with pytest.raises(ConfigError, match="mesh-provenance"):
        mesh_directory((tmp_path,))


def test_children_inherit_nothing_that_would_lead_them_elsewhere():
    inherited = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy", "no_proxy": "x", "OTEL_TRACES_SAMPLER": "always_off"}
    assert child_environment(inherited) == {"PATH": "/bin"}


def test_services_find_the_package_their_seed_and_the_script(tmp_path):
    environment = service_environment(seed=5, script=tmp_path / "s.json", GATEWAY="127.0.0.1:1")
    assert (Path(environment["PYTHONPATH"].split(os.pathsep)[0]) / "provenance" / "names.py").is_file()
    assert (environment["SEED"], environment["GATEWAY"]) == ("5", "127.0.0.1:1")

"""`provenance witness`: what may be asked of it, and that it sees real sockets."""

import json
import socket
import sys
import threading
from contextlib import closing

import pytest

from collector.client import open_source
from collector.commands import witness
from collector.errors import ConfigError
from collector.witnesses.sockets_dump import open_table
from collector.witnesses.sockets_judge import PROXIES

linux = pytest.mark.skipif(sys.platform != "linux", reason="socket tables are read on Linux")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "--service is missing"),
        (["--service", "web"], "--collector URL"),
        (["--service", "web", "--once", "--into", "x.duckdb"], "--once prints"),
        (["--service", "web", "--once", "--proxy", "envoy"], "istio, linkerd"),
        (["--service", "web", "--once", "--proxy", "15001"], "15001/15006"),
        (["--service", "web", "--once", "--proxy", "1/70000"], "15001/15006"),
        (["--service", "web", "--once", "--interval", "1ms"], "10ms to 1m"),
        (["--service", "web", "--once", "--interval", "soon"], "10ms to 1m"),
    ],
)
def test_what_cannot_be_asked_is_said(argv, reason, capsys):
    assert witness.main(argv) == 2
    assert reason in capsys.readouterr().err


def test_settings_come_from_the_environment_and_flags_win():
    environ = {"PROVENANCE_WITNESS_SERVICE": "web", "PROVENANCE_WITNESS_PROXY": "linkerd"}
    options = witness.parse(["--once"], environ)
    assert (options.identity.service_name, options.proxy) == ("web", PROXIES["linkerd"])
    assert witness.parse(["--once", "--service", "cart"], environ).identity.service_name == "cart"


def test_a_proxys_ports_may_be_named():
    proxy = witness.parse_proxy("4140,4141/4143")
    assert (sorted(proxy.outbound_ports), sorted(proxy.inbound_ports)) == ([4140, 4141], [4143])
    with pytest.raises(ConfigError):
        witness.parse_proxy("a/b")


@linux
def test_once_prints_the_listeners_of_this_namespace(capsys):
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert witness.main(["--service", "web", "--proxy", "1/2", "--once", "--format", "json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        port = server.getsockname()[1]
    ports = {s["local_port"] for s in printed["sockets"] if s["state"] == "LISTEN"}
    assert port in ports
    assert printed["watch"]["proxy_found"] is False


@linux
def test_a_file_gets_what_was_seen(tmp_path):
    stop = threading.Event()
    options = witness.parse(["--service", "web", "--into", str(tmp_path / "e.duckdb")], {})
    stop.set()  # the report at the end is written all the same
    with closing(witness.Eyes(open_table())) as eyes:
        assert witness._watch_into(options, eyes, stop) == 0
    with closing(open_source(str(tmp_path / "e.duckdb"))) as source:
        assert source.query("SELECT service_name FROM socket_watches").to_dicts() == [{"service_name": "web"}]

"""The lab in short: a real mesh in network namespaces. Needs root and iptables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from collector.errors import ConfigError
from collector.lab.__main__ import check
from collector.lab.network import PATH


def reason():
    """Why the lab cannot run here; None where it can."""
    try:
        check()
    except ConfigError as e:
        return str(e)
    return None


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.xdist_group("lab")
def test_every_way_is_played_and_no_clean_call_is_accused():
    if why := reason():
        pytest.skip(why)
    argv = [sys.executable, "-m", "collector.lab", "--calls", "150", "--rate", "40", "--format", "json", "--all-only"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=390, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["failed"] == {}
    assert result["accused"] == 0
    calls = {(row["witnesses"], row["way"]): row for row in result["calls"]}
    for way in ("excluded_port", "excluded_ip_range", "proxy_uid", "no_sidecar", "plaintext", "direct_pod_ip"):
        row = calls["all", way]
        assert row["bypassed"] == row["calls"], way
    assert calls["all", "forged_xfcc"]["meshed"] == 0
    sockets = {(row["side"], row["way"]): row for row in result["connections"]}
    assert sockets["caller", "clean"]["bypassed"] == sockets["caller", "direct_pod_ip"]["bypassed"] == 0
    assert sockets["callee", "clean"]["bypassed"] == sockets["caller", "no_sidecar"]["bypassed"] == 0
    assert sockets["caller", "udp"]["bypassed"] == sockets["caller", "udp"]["connections"]
    for way in ("excluded_port", "excluded_ip_range", "proxy_uid"):
        row = sockets["caller", way]
        assert row["bypassed"] > 0 == row["captured"], way
    assert sockets["callee", "forged_xfcc"]["bypassed"] > 0
    left = subprocess.run(
        ["ip", "netns", "list"], env={"PATH": PATH}, capture_output=True, text=True, check=True
    ).stdout
    assert "provlab-" not in left

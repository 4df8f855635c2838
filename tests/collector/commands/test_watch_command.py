"""`provenance watch` and `scan --explain`, as people type them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collector.commands import scan
from collector.commands.watch import main
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.forensics.factories import S, make_span, to_arrow
from tests.collector.watch.webhook_server import Script, serving, wait_for

# Egress is the detector whose SQL is the quickest to compile, and what a watch does with findings is the same for all.
RULES = ["--kind", "egress", "--policy"]
MODULE = [sys.executable, "-m", "provenance.cli", "watch"]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A minute of `web` calling `pay`, and one call of it to an address outside, half a minute ago."""
    path = tmp_path_factory.mktemp("watched") / "evidence.duckdb"
    now = time.time_ns()
    spans = []
    for n in range(12):
        at = {
            "start_time_unix_nano": now - (65 - 5 * n) * S,
            "received_unix_nano": now - (64 - 5 * n) * S,
            "trace_id": n + 1,
        }
        spans += [
            make_span(span_id=1, kind="CLIENT", service_name="web", **at),
            make_span(span_id=2, parent_span_id=1, service_name="pay", provenance_stamp_status="unsigned", **at),
        ]
    leaving = {"start_time_unix_nano": now - 30 * S, "received_unix_nano": now - 29 * S}
    outside = {"server_address": "203.0.113.9", "server_port": 443}
    spans.append(make_span(trace_id=99, kind="CLIENT", service_name="web", **outside, **leaving))
    with Store.open(path) as opened, Writer(opened) as writer:
        writer.append({"spans": to_arrow("spans", spans).to_batches()[0]}).result(30)
    path.with_name("nothing.toml").write_text("[egress]\nallow = []\n")
    return str(path)


def rules(db: str) -> list[str]:
    return [*RULES, os.fspath(Path(db).with_name("nothing.toml"))]


@pytest.mark.slow
def test_a_finding_is_told_listed_acknowledged_and_not_told_again(
    db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = str(tmp_path / "watch.json")
    watch = [db, *rules(db), "--state", state, "--until-idle", "1s", "--interval", "1s", "--format", "ndjson"]
    script = Script()
    with serving(script) as base:
        assert main([*watch, "--webhook", base]) == 1
    out, _ = capsys.readouterr()
    [event] = [json.loads(line) for line in out.splitlines()]
    assert (event["event"], event["reasons"], event["destination"]) == ("opened", ["unlisted"], "203.0.113.9:443")
    told = [alert for request in script.requests for alert in json.loads(request.body)]
    assert {alert["labels"]["finding_id"] for alert in told} == {event["finding_id"]}

    assert main([*watch]) == 1
    assert capsys.readouterr().out == ""

    assert main(["--list", "--state", state, "--format", "ndjson"]) == 1
    [listed] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (listed["finding_id"], listed["phase"], listed["acknowledged"]) == (event["finding_id"], "open", False)

    assert main(["--ack", event["finding_id"][:6], "--state", state]) == 0
    assert main(["--silence", event["finding_id"], "--for", "2h", "--state", state]) == 0
    assert main(["--list", "--state", state, "--format", "ndjson"]) == 1
    [listed] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert listed["acknowledged"] is True
    assert listed["silenced_until"] is not None
    assert main(["--clear", event["finding_id"], "--state", state]) == 0
    assert main(["--list", "--state", state]) == 1
    assert "false" in capsys.readouterr().out


@pytest.mark.slow
def test_after_a_kill_what_was_not_delivered_is_delivered_with_the_same_id(db: str, tmp_path: Path) -> None:
    state = tmp_path / "watch.json"
    arguments = [db, *rules(db), "--state", str(state), "--interval", "1s"]
    down = Script([(503, {"Retry-After": "300"})])
    with serving(down) as base:
        # The same path, so that it is the same sink to the second run, which finds it answering.
        command = [*MODULE, *arguments, "--slack", f"{base}/hook"]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        assert "opened" in first.stdout.readline()
        wait_for(lambda: bool(down.requests))
        # Until then a kill has the line written again: told twice with one id, rather than lost.
        wait_for(lambda: "stdout" not in json.loads(state.read_text())["outbox"])
        first.kill()
        first.communicate()
        second = subprocess.run(
            [*command, "--until-idle", "1s"], check=False, capture_output=True, text=True, timeout=100
        )
    assert second.returncode == 1
    assert second.stdout == ""
    assert [r.headers["idempotency-key"] for r in down.requests] == [down.requests[0].headers["idempotency-key"]] * 2
    assert base + "/hook" not in second.stderr


@pytest.mark.slow
def test_a_signal_ends_it_with_0_and_a_second_watch_is_refused(db: str, tmp_path: Path) -> None:
    arguments = [db, "--kind", "egress", "--state", str(tmp_path / "watch.json")]
    with subprocess.Popen([*MODULE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        wait_for((tmp_path / "watch.json").exists)
        second = subprocess.run([*MODULE, *arguments], check=False, capture_output=True, text=True, timeout=100)
        assert second.returncode == 2
        assert f"another watch (process {first.pid}) keeps its state" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "required: SOURCE"),
        (["--ack", "abc"], "--ack: which watch? give its --state FILE"),
        (["--silence", "abc", "--state", "x"], "--silence: for how long? give --for 2h"),
        (["--list", "--ack", "abc", "--state", "x"], "one at a time"),
        (["x", "--interval", "1h"], "--interval: longer than --window"),
        (["x", "--interval", "0s"], "expected a duration like 5s"),
        (["x", "--resolve-after", "90s"], "--resolve-after: expected whole minutes"),
        (["x", "--kind", "shade"], "choose from shadow, latency, egress"),
    ],
)
def test_wrong_usage_is_told(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROVENANCE_WATCH_STATE", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--list", "--state", "{tmp}/none.json"], 2, "no state there"),
        (["{tmp}/none.duckdb"], 3, "none.duckdb"),
        (["http://127.0.0.1:9"], 3, "no collector answers"),
        (["{tmp}/none.duckdb", "--thresholds", "{tmp}/none.toml"], 2, "none.toml: the thresholds cannot be read"),
        (["{tmp}/none.duckdb", "--slack", "mailto:a@b"], 2, "--slack: no URL"),
        (["{tmp}/none.duckdb", "--slack", "http://h/x", "--slack", "http://h/x"], 2, "slack http://h: is given twice"),
        (["{tmp}/none.duckdb", "--webhook", "http://h", "--webhook-header-file", "{tmp}/none"], 2, "cannot be read"),
    ],
)
def test_what_cannot_be_is_told(
    argv: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{tmp}", str(tmp_path)) for word in argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_the_helps_kinds_are_the_findings() -> None:
    from collector.commands.watch import KINDS
    from collector.forensics import findings

    assert KINDS == findings.KINDS


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from collector.commands.watch import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint([m for m in ('ibis', 'duckdb', 'httpx') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_scan_explains_with_the_thresholds_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.toml"
    path.write_text("[egress]\nmin_beacon_calls = 77\n")
    assert scan.main(["--explain", "egress", "--thresholds", str(path)]) == 0
    assert "min_beacon_calls = 77  # changed; the default is 10" in capsys.readouterr().out
    monkeypatch.setenv("PROVENANCE_THRESHOLDS", str(path))
    assert scan.main(["--explain", "egress"]) == 0
    assert "min_beacon_calls = 77" in capsys.readouterr().out
    path.write_text("[egress]\nmin_beacon_call = 77\n")
    assert scan.main(["--explain", "egress"]) == 2
    assert "did you mean egress.min_beacon_calls?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scan.main([])


def test_state_and_thresholds_may_come_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVENANCE_WATCH_STATE", os.fspath(tmp_path / "w.json"))
    assert main(["--list"]) == 2
    assert "w.json: no state there" in capsys.readouterr().err

"""`provenance keys` and `provenance verify`: real services with keys, somebody between them, and what is said of every call."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from provenance.cli import main
from provenance.keys import parse_key_set
from tests.collector.receiver.clients.collector_process import running_collector

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 45.0


def keys(*arguments: object) -> int:
    return main(["keys", *map(str, arguments)])


# --- keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["hmac", "ed25519"])
def test_keys_are_made_rotated_listed_and_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    file = tmp_path / "keys.json"
    assert keys("new", "checkout", "--file", file, "--algorithm", algorithm) == 0
    assert keys("new", "gateway", "--file", file) == 0
    assert keys("rotate", "checkout", "--file", file) == 0
    assert keys("rotate", "checkout", "--file", file, "--keep", 2) == 0
    assert capsys.readouterr().out.split() == ["checkout/1", "gateway/1", "checkout/2", "checkout/3"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]

    assert keys("list", "--file", file) == 0
    name = {"hmac": "HS256", "ed25519": "EdDSA"}[algorithm]
    listed = capsys.readouterr().out
    assert [line.split("\t")[:2] for line in listed.splitlines()] == [
        ["gateway/1", "HS256"],
        ["checkout/2", name],
        ["checkout/3", name],
    ]
    assert keys("public", "--file", file) == 0
    published = capsys.readouterr().out
    assert list(parse_key_set(published).by_kid) == (["checkout/2", "checkout/3"] if algorithm == "ed25519" else [])
    for entry in json.loads(file.read_text())["keys"]:
        for secret in (entry.get("k"), entry.get("d")):
            assert secret is None or secret not in listed + published


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "checkout"), "has keys already"),
        (("rotate", "gateway"), "no key of 'gateway' to rotate"),
        (("new", "x" * 300), "bytes of UTF-8"),
    ],
)
def test_a_slip_is_told_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "keys.json"
    keys("new", "checkout", "--file", file)
    before = file.read_text()

    assert keys(*arguments, "--file", file) == 2
    assert said in capsys.readouterr().err
    assert file.read_text() == before


def test_a_file_that_is_no_key_set_is_named_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("remember the milk")

    assert keys("new", "checkout", "--file", file) == 2
    assert keys("list", "--file", tmp_path / "nowhere.json") == 2
    said = capsys.readouterr().err
    assert f"{file}: not JSON" in said
    assert "nowhere.json" in said
    assert file.read_text() == "remember the milk"


# --- verify ---------------------------------------------------------------------------------------------------------------


class Between(grpc.GenericRpcHandler):
    """Forwards calls as bytes, and does with the n-th what it is told to."""

    def __init__(
        self, target: str, attacks: dict[int, Callable[[bytes, dict[str, str]], tuple[bytes, dict[str, str]]]]
    ):
        self._channel = grpc.insecure_channel(target)
        self._attacks = attacks
        self._calls = 0

    def service(self, details: Any) -> Any:
        forward: Any = self._channel.unary_unary(details.method)

        def handle(body: bytes, context: Any) -> Any:
            self._calls += 1
            headers = {k: v for k, v in context.invocation_metadata() if k != "user-agent"}
            if self._calls in self._attacks:
                body, headers = self._attacks[self._calls](body, headers)
            answer = forward(body, metadata=tuple(headers.items()), timeout=DEADLINE_SECONDS)
            if self._calls == REPLAYED:
                answer = forward(body, metadata=tuple(headers.items()), timeout=DEADLINE_SECONDS)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)


REPLAYED = 3


def another_order(_body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    order = Struct()
    order.update({"item": "shirt", "count": 900})
    return order.SerializeToString(), headers


def without(name: str) -> Callable[[bytes, dict[str, str]], tuple[bytes, dict[str, str]]]:
    return lambda body, headers: (body, {key: value for key, value in headers.items() if key != name})


def with_another_mac(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    stamp, _, _ = headers["provenance"].rpartition(", mac=")
    return body, headers | {"provenance": f"{stamp}, mac=:{'A' * 43}=:"}


@contextmanager
def between(target: str) -> Iterator[str]:
    attacks = {2: another_order, 4: without("provenance"), 5: with_another_mac, 6: without("traceparent")}
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Between(target, attacks),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(DEADLINE_SECONDS)


@contextmanager
def checkout(environment: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "examples/grpc_service/server.py"), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("listening on ").strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["hmac", "ed25519"])
def test_of_real_calls_those_that_were_meddled_with_are_told_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    file = tmp_path / "keys.json"
    keys("new", "web", "--file", file, "--algorithm", algorithm)
    with running_collector(tmp_path) as collector:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PROVENANCE_"))}
        environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.grpc}",
            "PROVENANCE_KEYS": str(file),
            "PYTHONPATH": str(ROOT),
        }
        with checkout(environment) as target, between(target) as proxy:
            client = [sys.executable, str(ROOT / "examples/grpc_service/client.py"), "--target", proxy, "--calls", "7"]
            done = subprocess.run(client, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (0, "")
        wait_for_spans(collector.url, 7 + 8)
        capsys.readouterr()

        exit_code = main(["verify", collector.url, "--keys", str(file), "--format", "json"])
        judged = json.loads(capsys.readouterr().out)
        assert Counter(row["verdict"] for row in judged) == {
            "valid": 3, "tampered": 2, "replayed": 1, "absent": 1, "forged": 1
        }  # fmt: skip
        assert exit_code == 4
        assert {row["callee"] for row in judged} == {"checkout"}
        assert {row["caller"] for row in judged} == {"web", None}
        assert [row["verdict"] for row in judged] == [
            "valid", "tampered", "valid", "replayed", "absent", "forged", "tampered", "valid"
        ]  # fmt: skip

        trace_id = judged[0]["trace_id"]
        assert main(["verify", collector.url, "--keys", str(file), "--trace", trace_id]) == 0
        printed = capsys.readouterr()
        assert "the MAC is web/1's over what arrived" in printed.out
        assert "1 calls: 1 valid" in printed.err
        assert main(["verify", collector.url, "--failed", "--keys", str(file)]) == 4
        assert "absent" not in capsys.readouterr().out
        assert main(["verify", collector.url]) == 4, "what needs no key is found without one"
        assert "without --keys" in capsys.readouterr().err


def wait_for_spans(url: str, count: int) -> None:
    from collector.client import open_source

    source = open_source(url)
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (n := source.query("SELECT count(*) AS n FROM spans").item()) < count:
            assert time.monotonic() < deadline, n
            time.sleep(0.1)
    finally:
        source.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keys", "nowhere.json"), "--keys nowhere.json"),
        (("--trace", "xyz"), "not a trace id"),
        (("--since", "1h", "--until", "2h"), "--since is not before --until"),
    ],
)
def test_a_verification_that_cannot_be_made_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    from collector.store.database import Store

    Store.open(tmp_path / "evidence.duckdb").close()

    assert main(["verify", str(tmp_path / "evidence.duckdb"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_evidence_without_stamps_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from collector.store.database import Store

    Store.open(tmp_path / "evidence.duckdb").close()

    assert main(["verify", str(tmp_path / "evidence.duckdb")]) == 0
    assert "no call here came to a service with the middleware" in capsys.readouterr().err

"""Keys from Vault's transit engine, over real HTTP from a process of its own that can go away and come back."""

import base64
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provenance import faults, signing, vault
from provenance.keys import Ed25519Key, HmacKey, KeysError
from provenance.vault import Version, parse_address, signing_keys

SERVER = Path(__file__).with_name("vault_server.py")
DEADLINE_SECONDS = 20.0


class Vault:
    """The stand-in, and what an operator does to it."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "vault.json"
        self._process: subprocess.Popen[str] | None = None
        self.address = "127.0.0.1:0"

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        argv = [sys.executable, str(SERVER), port, str(self._state)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def post(self, path: str, **data: Any) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}/v1/transit/{path}", json.dumps(data).encode(), {"x-vault-token": "root"}
        )
        with urllib.request.urlopen(request) as response:
            text = response.read()
        return json.loads(text)["data"] if text else None

    def keys(self, names: str, options: str = "") -> str:
        return f"vault+http://{self.address}/transit/{names}{options}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setenv("VAULT_TOKEN", "root")
    monkeypatch.setattr(vault, "RETRY_SECONDS", 0.05)
    faults.reset()
    running = Vault(tmp_path)
    running.start()
    yield running
    signing.sign_with(None)
    running.stop()
    faults.reset()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        waiting.wait(0.01)


def test_an_hmac_key_signs_as_vault_itself_does_and_its_id_has_vaults_version(server: Vault) -> None:
    server.post("keys/checkout", type="aes256-gcm96")
    server.post("keys/checkout/rotate")
    signing.sign_with(server.keys("checkout=shop%2Fcheckout"))

    assert signing.signing_key("checkout") is None
    newest = signing.verification_key("shop/checkout/2")
    assert newest is not None
    of_vault = server.post("hmac/checkout/sha2-256", input=base64.b64encode(b"text").decode())["hmac"]
    assert of_vault == f"vault:v2:{base64.b64encode(newest.sign(b'text')).decode()}"
    assert faults.counts() == {}


def test_ed25519_signs_where_the_token_may_export_and_verifies_where_it_may_not(
    server: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.post("keys/checkout", type="ed25519")
    signing.sign_with(server.keys("checkout"))
    signed = signing.signing_key("checkout")
    assert signed is not None
    mac = signed.sign(b"text")
    monkeypatch.setenv("VAULT_TOKEN", "verifier")
    signing.sign_with(server.keys("checkout"))

    assert signing.signing_key("checkout") is None
    public = signing.verification_key("checkout/1")
    assert public is not None
    assert public.verify(b"text", mac)
    assert not public.verify(b"another", mac)
    assert faults.counts() == {}


def test_a_new_version_verifies_at_the_next_look_and_what_vault_retired_no_more(server: Vault) -> None:
    server.post("keys/checkout")
    keys = vault.VaultKeys(parse_address(server.keys("checkout")))
    assert keys.look()
    first = keys.verification_key("checkout/1")
    server.post("keys/checkout/rotate")
    assert keys.look()

    assert keys.verification_key("checkout/1") is first  # not asked for again
    assert keys.verification_key("checkout/2") is not None
    assert keys.signing_key("checkout") is first  # others may not have seen the second yet
    server.post("keys/checkout/config", min_decryption_version=2)
    assert keys.look()
    assert keys.verification_key("checkout/1") is None
    assert keys.signing_key("checkout") is keys.verification_key("checkout/2")


@pytest.mark.slow
def test_while_vault_is_down_the_last_keys_go_on_and_their_age_is_told(
    server: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    server.post("keys/checkout")
    signing.sign_with(server.keys("checkout", "?refresh=1"))
    key = signing.signing_key("checkout")
    assert key is not None
    server.stop()
    with caplog.at_level(logging.WARNING, "provenance"):
        wait_for(lambda: faults.counts().get(vault.PLACE, 0) >= 3)

    assert signing.signing_key("checkout") is key
    down = signing.keys_age_seconds()
    assert down is not None
    assert down > 0.5
    assert len(caplog.records) == 1  # once a minute, however often it is tried
    assert server.address in caplog.text
    assert "s ago goes on" in caplog.text
    server.start()
    wait_for(lambda: (signing.keys_age_seconds() or 0) < down)


def test_a_vault_that_is_down_at_the_start_is_asked_until_it_answers(server: Vault) -> None:
    server.post("keys/checkout")
    server.stop()
    signing.sign_with(server.keys("checkout"))
    assert signing.signing_key("checkout") is None
    server.start()

    wait_for(lambda: signing.signing_key("checkout") is not None)


def test_a_token_file_is_read_every_time(server: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.post("keys/checkout")
    file = tmp_path / "token"
    file.write_text("expired\n")
    monkeypatch.delenv("VAULT_TOKEN")
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    keys = vault.VaultKeys(parse_address(server.keys("checkout")))
    assert not keys.look()
    file.write_text("root\n")

    assert keys.look()
    assert keys.signing_key("checkout") is not None


def test_one_key_that_is_missing_costs_the_others_nothing(server: Vault, caplog: pytest.LogCaptureFixture) -> None:
    server.post("keys/checkout")
    keys = vault.VaultKeys(parse_address(server.keys("checkout,nobody")))

    assert not keys.look()
    assert keys.signing_key("checkout") is not None
    assert "nobody" in caplog.text


@pytest.mark.slow
def test_a_forked_worker_goes_on_looking(server: Vault) -> None:
    server.post("keys/checkout")
    program = """
import os, sys, threading
from provenance import signing
signing.sign_with(sys.argv[1])
pid = os.fork()
if pid == 0:
    print("ready", flush=True)
    while signing.verification_key("checkout/2") is None:
        threading.Event().wait(0.01)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    argv = [sys.executable, "-c", program, server.keys("checkout", "?refresh=1")]
    worker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=SERVER.parents[2], env=os.environ)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    server.post("keys/checkout/rotate")

    assert worker.wait(DEADLINE_SECONDS) == 0
    worker.stdout.close()


def test_a_version_signs_once_everybody_had_the_time_to_read_it() -> None:
    def version(number: int, created: str) -> Version:
        return Version(created, HmacKey(f"checkout/{number}", bytes(32)))

    def chosen(*created: str) -> str:
        versions = {"checkout": {n: version(n, each) for n, each in enumerate(created, 1)}}
        return signing_keys(versions, now=1000.0, ripe_seconds=120)["checkout"].kid

    assert chosen("500", "870") == "checkout/2"
    assert chosen("500", "890") == "checkout/1"
    assert chosen("990") == "checkout/1"
    assert chosen("980", "990") == "checkout/1"
    assert chosen("500", "1970-01-01T00:14:30.123456789Z") == "checkout/2"
    assert chosen("500", "1970-01-01T00:16:30.123456789Z") == "checkout/1"
    assert chosen("500", "no time") == "checkout/2"


def test_public_halves_sign_nothing() -> None:
    public = Ed25519Key("checkout/1", bytes(32))

    assert signing_keys({"checkout": {1: Version("1", public)}}, now=1000.0, ripe_seconds=0) == {}


def test_addresses() -> None:
    address = parse_address("vault://vault.example:8200/eu/transit/checkout,pay=payments%2Feu?refresh=15")
    assert address.url == "https://vault.example:8200"
    assert address.mount == "eu/transit"
    assert address.keys == (("checkout", "checkout"), ("pay", "payments/eu"))
    assert address.refresh_seconds == 15


@pytest.mark.parametrize(
    "text",
    [
        "vault://vault.example",
        "vault://vault.example/transit",
        "vault://vault.example/transit/",
        "vault:///transit/checkout",
        "vault://vault.example/transit/a,,b",
        "vault://vault.example/transit/../sys",
        "vault://vault.example/transit/checkout?refresh=0",
        "vault://vault.example/transit/checkout?refresh=soon",
        "vault://vault.example/transit/checkout?refesh=5",
        "vault://vault.example:port/transit/checkout",
        "vault://[::1/transit/checkout",
    ],
)
def test_an_address_that_cannot_be_read_says_what_is_expected(text: str) -> None:
    with pytest.raises(KeysError, match=r"expected vault://HOST:PORT/MOUNT/KEY"):
        parse_address(text)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"type": "hmac"},
        {"type": "hmac", "keys": []},
        {"type": "hmac", "keys": {"one": 1}},
        {"type": "ed25519", "keys": {"1": 5}},
        {"type": "ed25519", "keys": {"1": {"public_key": "?"}}},
        {"type": "hmac", "keys": {"1": 1}, "min_decryption_version": "x"},
    ],
)
def test_an_answer_that_is_not_understood_names_the_key(answer: dict[str, Any]) -> None:
    class Transit:
        def describe(self, _name: str) -> dict[str, Any]:
            return answer

        def export(self, _kind: str, _name: str, _version: int) -> str:
            return ""

    with pytest.raises(KeysError, match="checkout"):
        vault.read_versions(Transit(), "checkout", "checkout", {})

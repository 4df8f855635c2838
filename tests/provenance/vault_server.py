"""A stand-in for Vault: the part of the transit engine's HTTP API that keys are read with, as HashiCorp documents it.

    python vault_server.py PORT STATE.json

prints its address. POST keys/NAME {type}, keys/NAME/rotate, keys/NAME/config {min_decryption_version}; GET keys/NAME,
export/hmac-key|signing-key/NAME/VERSION; POST hmac/NAME/sha2-256 {input}. The token `root` may do all; `verifier` may not export.
Its keys are in STATE.json, so that it can go and come back.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOUNT = "/v1/transit/"
POLICIES = {"root": ("keys", "export", "hmac"), "verifier": ("keys",)}


class Refused(Exception):  # noqa: N818
    """Status and message."""


def version(kind: str) -> dict[str, Any]:
    if kind != "ed25519":
        return {"secret": base64.b64encode(os.urandom(32)).decode(), "created": int(time.time())}
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    return {
        "secret": base64.b64encode(private.private_bytes_raw() + public).decode(),
        "public": base64.b64encode(public).decode(),
        # Go's RFC 3339, with nanoseconds.
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}123Z",
    }


def described(key: dict[str, Any], name: str) -> dict[str, Any]:
    first = key["min_decryption_version"]
    shown = {n: v for n, v in key["versions"].items() if int(n) >= first}
    keys = {
        n: {"creation_time": v["created"], "name": "ed25519", "public_key": v["public"]}
        if "public" in v
        else v["created"]
        for n, v in shown.items()
    }
    return {
        "name": name, "type": key["type"], "exportable": True, "keys": keys, "min_decryption_version": first,
        "latest_version": len(key["versions"]),
    }  # fmt: skip


def answer(state: dict[str, Any], path: list[str], body: dict[str, Any] | None) -> dict[str, Any] | None:
    match path, body:
        case ["keys", name], None:
            return described(found(state, name), name)
        case ["keys", name], dict():
            kind = body.get("type", "aes256-gcm96")
            state.setdefault(name, {"type": kind, "min_decryption_version": 1, "versions": {"1": version(kind)}})
        case ["keys", name, "rotate"], dict():
            key = found(state, name)
            key["versions"][str(len(key["versions"]) + 1)] = version(key["type"])
        case ["keys", name, "config"], dict():
            found(state, name)["min_decryption_version"] = body["min_decryption_version"]
        case ["export", ("hmac-key" | "signing-key") as kind, name, number], None:
            key = found(state, name)
            if (kind == "signing-key") != (key["type"] == "ed25519"):
                raise Refused(400, f"{kind} not supported for {key['type']}")
            if number not in key["versions"] or int(number) < key["min_decryption_version"]:
                raise Refused(400, "version does not exist or cannot be found")
            return {"name": name, "keys": {number: key["versions"][number]["secret"]}}
        case ["hmac", name, "sha2-256"], dict():
            newest = list(found(state, name)["versions"].values())[-1]
            mac = hmac.digest(base64.b64decode(newest["secret"]), base64.b64decode(body["input"]), hashlib.sha256)
            return {"hmac": f"vault:v{len(found(state, name)['versions'])}:{base64.b64encode(mac).decode()}"}
        case _:
            raise Refused(404, "unsupported path")
    return None


def allow(token: str, path: str) -> None:
    if path not in POLICIES.get(token, ()):
        raise Refused(403, "permission denied")


def found(state: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in state:
        raise Refused(404, "")
    key: dict[str, Any] = state[name]
    return key


class Handler(BaseHTTPRequestHandler):
    state_file: Path

    def do_GET(self) -> None:
        self.serve(None)

    def do_POST(self) -> None:
        self.serve(json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}"))

    def serve(self, body: dict[str, Any] | None) -> None:
        try:
            path = self.path.removeprefix(MOUNT).split("/")
            allow(self.headers.get("x-vault-token", ""), path[0])
            state = json.loads(self.state_file.read_text())
            data = answer(state, path, body)
            self.state_file.write_text(json.dumps(state))
            self.say(200 if data is not None else 204, {"data": data})
        except Refused as refused:
            status, message = refused.args
            self.say(status, {"errors": [message] if message else []})

    def say(self, status: int, document: dict[str, Any]) -> None:
        text = b"" if status == 204 else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    Handler.state_file = Path(sys.argv[2])
    if not Handler.state_file.exists():
        Handler.state_file.write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(f"127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""A client of the lab: makes the calls of a file and writes down, for each, what really happened.

    caller.py NAME CALLS TRUTH RATE

Each line of CALLS is a call of the script; each line of TRUTH is the same with `trace_id`, `local`, `remote`, `at_unix_nano` and `error`.
"""

import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import httpx

import provenance

WORKERS = 4
TIMEOUT_SECONDS = 20.0


class Caller:
    """Makes calls from several threads; kept connections are a way's own, in each thread."""

    def __init__(self, truth: TextIO) -> None:
        self._truth = truth
        self._lock = threading.Lock()
        self._own = threading.local()
        self._kept: list[httpx.Client | socket.socket] = []
        """What the threads hold of their own, which would otherwise be closed as they end: before a witness's next look, for the last call's."""

    def make(self, call: dict[str, Any]) -> None:
        """One call and its truth; what fails is written down, not raised."""
        done = dict(call, at_unix_nano=time.time_ns(), error=None, trace_id=None, local=None, remote=None)
        try:
            done |= self._datagram(call) if call["way"] == "udp" else self._request(call)
        except (httpx.HTTPError, OSError, ValueError) as error:
            done["error"] = f"{type(error).__name__}: {error}"
        with self._lock:
            self._truth.write(json.dumps(done) + "\n")

    def _request(self, call: dict[str, Any]) -> dict[str, Any]:
        headers = {"host": call["host"], **dict(call["headers"])}
        if call["style"] == "callee_closes":
            headers["connection"] = "close"
        client = self._client(call["way"] if call["style"] == "kept" else call["style"])
        url = f"http://{call['address']}:{call['port']}/orders"
        with client.stream("POST", url, headers=headers, json={"sku": "sku-001"}) as response:
            stream = response.extensions["network_stream"]
            ends = {"local": stream.get_extra_info("client_addr"), "remote": stream.get_extra_info("server_addr")}
            answer = json.loads(response.read())
        response.raise_for_status()
        return {"trace_id": answer["trace_id"], **{k: f"{v[0]}:{v[1]}" for k, v in ends.items()}}

    def _client(self, name: str) -> httpx.Client:
        clients: dict[str, httpx.Client] = self._own.__dict__.setdefault("clients", {})
        if name not in clients:
            kept = 0 if name == "caller_closes" else 8
            limits = httpx.Limits(max_keepalive_connections=kept, keepalive_expiry=300.0)
            clients[name] = httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False, limits=limits)
            self._kept.append(clients[name])
        return clients[name]

    def _datagram(self, call: dict[str, Any]) -> dict[str, Any]:
        sender: socket.socket | None = getattr(self._own, "datagrams", None)
        if sender is None:
            sender = self._own.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._kept.append(sender)
            sender.connect((call["address"], call["port"]))
        sender.send(b"orders:1|c")
        local, remote = sender.getsockname(), sender.getpeername()
        return {"local": f"{local[0]}:{local[1]}", "remote": f"{remote[0]}:{remote[1]}"}


def main() -> None:
    """Make the calls at the rate, then keep the connections until SIGTERM, as a service does."""
    _, name, calls, truth, rate = sys.argv
    telemetry = provenance.instrument(service_name=name) if os.environ.get("LAB_INSTRUMENTED") == "1" else None
    script = [json.loads(line) for line in Path(calls).read_text().splitlines()]
    with Path(truth).open("w") as output, ThreadPoolExecutor(WORKERS) as pool:
        caller = Caller(output)
        begun = time.monotonic()
        for number, call in enumerate(script):
            time.sleep(max(0.0, begun + number / float(rate) - time.monotonic()))
            pool.submit(caller.make, call)
        pool.shutdown()
        output.flush()
        Path(truth).with_suffix(".done").write_text("done")
        if telemetry is not None:
            telemetry.shutdown()
        threading.Event().wait()


if __name__ == "__main__":
    main()

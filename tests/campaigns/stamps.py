"""Somebody between two services: `make stamp-attacks` tries every way to meddle with calls, and counts what `provenance verify` tells.

Real processes: a collector, a callee and two callers with keys (one of which signs with the other's), and between them a gRPC proxy
that forwards most calls as they are and does something to the others. What it did is written down by request id, and compared with
the verdict of each call afterwards. Among the clean calls are streams, calls that fail and are sent again by the proxy with the same
stamp, and calls that the caller cancels.

Usage: python -m tests.campaigns.stamps [--calls N] [--seed N] [--attributes packed] [--out FILE]
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

TRANSPORTS: Final = ("grpc", "asgi", "wsgi")
"""gRPC; httpx to an ASGI application; requests to a WSGI one."""

SERVICE: Final = "till.Till"
THREADS: Final = 6
SHARE: Final = 0.1
"""Of the calls that somebody meddles with."""

CLEAN: Final = "clean"
EXPECTED: Final[dict[str, frozenset[str]]] = {
    "bit flipped in the body": frozenset({"tampered"}),
    "another method": frozenset({"tampered"}),
    "replayed": frozenset({"replayed"}),
    "no stamp": frozenset({"absent"}),
    "another MAC": frozenset({"forged"}),
    "another kid": frozenset({"forged", "tampered", "unknown key"}),
    "no trace context": frozenset(
        {"tampered", "forged"}
    ),  # where the caller's span is lost, nothing tells the two apart
    "messages swapped": frozenset({"tampered"}),
    "last message dropped": frozenset({"tampered"}),
}
OF_UNARY: Final[tuple[str, ...]] = (
    "bit flipped in the body",
    "another method",
    "replayed",
    "no stamp",
    "another MAC",
    "another kid",
    "no trace context",
)
OF_STREAMS: Final[tuple[str, ...]] = ("messages swapped", "last message dropped", "no stamp", "another MAC")
ANOTHERS_KEY: Final = "another service's key"

Metadata = dict[str, str]


# --- the parts, each a process of its own -----------------------------------------------------------------------------------


def callee(_options: argparse.Namespace) -> None:
    """Takes payments and uploads; one in a hundred fails the first time."""
    import provenance

    telemetry = provenance.instrument("till")
    import grpc

    failed: set[str] = set()
    lock = threading.Lock()

    def fail_sometimes(context: Any) -> None:
        request_id = dict(context.invocation_metadata()).get("x-request-id", "")
        with lock:
            first = request_id.endswith("7f") and request_id not in failed
            failed.add(request_id) if first else failed.discard(request_id)
        if first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    def pay(request: bytes, context: Any) -> bytes:
        fail_sometimes(context)
        return request[:8]

    def upload(requests: Iterator[bytes], context: Any) -> bytes:
        fail_sometimes(context)
        return str(sum(map(len, requests))).encode()

    server = grpc.server(futures.ThreadPoolExecutor(8))
    handlers: dict[str, Any] = {
        "Pay": grpc.unary_unary_rpc_method_handler(pay),
        "Refund": grpc.unary_unary_rpc_method_handler(pay),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    say(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    wait_for_the_end()
    server.stop(5).wait()
    telemetry.shutdown()


def caller(options: argparse.Namespace) -> None:
    """Calls; as `mallory` it signs with `web`'s key."""
    import provenance

    telemetry = provenance.instrument(options.service)
    import grpc

    if options.service == "mallory":
        sign_as_web()
    rng = random.Random(options.seed)
    done = Counter[str]()
    with grpc.insecure_channel(options.target) as channel:
        pay: Any = channel.unary_unary(f"/{SERVICE}/Pay")
        upload: Any = channel.stream_unary(f"/{SERVICE}/Upload")

        def call(number: int) -> str:
            body = number.to_bytes(8, "big") + rng.randbytes(rng.randrange(8, 400))
            try:
                if number % 5 == 0:
                    upload(iter([body, body[::-1], b"the end"]), timeout=30)
                elif number % 97 == 0:
                    future = pay.future(body, timeout=30)
                    future.cancel()
                    return "cancelled"
                else:
                    pay(body, timeout=30)
            except grpc.RpcError as error:
                return str(error.code())
            return "answered"

        with futures.ThreadPoolExecutor(THREADS) as pool:
            done.update(pool.map(call, range(options.calls)))
    telemetry.shutdown()
    say(json.dumps(done))


def sign_as_web() -> None:
    """From now on, sign with another service's key."""
    from provenance import outgoing
    from provenance.signing import signing_key

    setattr(outgoing, "signing_key", lambda _service: signing_key("web"))  # noqa: B010  (no part of its interface)


def between(options: argparse.Namespace) -> None:
    """Forwards, meddles, and writes down what it did, a line a call."""
    import grpc

    channel = grpc.insecure_channel(options.target)
    rng = random.Random(options.seed)
    lock = threading.Lock()
    out = options.ledger.open("w")

    turns = {attacks: itertools.cycle(attacks) for attacks in (OF_UNARY, OF_STREAMS)}

    def choose(attacks: tuple[str, ...], headers: Metadata) -> str:
        with lock:
            attack = next(turns[attacks]) if rng.random() < SHARE else CLEAN
            out.write(json.dumps({"request_id": headers["x-request-id"], "attack": attack}) + "\n")
        return attack

    def send(forward: Callable[..., Any], body: Any, headers: Metadata) -> Any:
        """As a mesh's proxy does: what was unavailable is tried once more."""
        for attempt in (1, 2):
            try:
                return forward(body() if callable(body) else body, metadata=tuple(headers.items()), timeout=20)
            except grpc.RpcError as error:
                if attempt == 2 or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        raise AssertionError

    def unary(method: str) -> Any:
        def handle(body: bytes, context: Any) -> Any:
            headers = own(context)
            attack = choose(OF_UNARY, headers)
            path, body, headers = meddle(attack, method, body, headers)
            forward: Any = channel.unary_unary(path)
            try:
                answer = send(forward, body, headers)
                return send(forward, body, headers) if attack == "replayed" else answer
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(method: str) -> Any:
        def handle(requests: Iterator[bytes], context: Any) -> Any:
            headers = own(context)
            attack = choose(OF_STREAMS, headers)
            messages = list(requests)
            if attack == "messages swapped":
                messages = [messages[1], messages[0], *messages[2:]]
            elif attack == "last message dropped":
                messages = messages[:-1]
            _, _, headers = meddle(attack, method, b"", headers)
            try:
                return send(channel.stream_unary(method), lambda: iter(messages), headers)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.stream_unary_rpc_method_handler(handle)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return (stream if details.method.endswith("Upload") else unary)(details.method)

    server = grpc.server(futures.ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((Handlers(),))
    say(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    wait_for_the_end()
    server.stop(5).wait()
    out.close()


def own(context: Any) -> Metadata:
    """The call's metadata, without what each hop has of its own."""
    return {key: value for key, value in context.invocation_metadata() if key != "user-agent"}


def meddle(attack: str, method: str, body: bytes, headers: Metadata) -> tuple[str, bytes, Metadata]:
    """What goes on of a call; pure."""
    stamp = headers.get("provenance", "")
    match attack:
        case "bit flipped in the body":
            return method, body[:-1] + bytes([body[-1] ^ 1]), headers
        case "another method":
            return method.replace("Pay", "Refund"), body, headers
        case "no stamp":
            return method, body, {k: v for k, v in headers.items() if k != "provenance"}
        case "another MAC":
            return method, body, headers | {"provenance": f"{stamp.rpartition(', mac=')[0]}, mac=:{'A' * 43}=:"}
        case "another kid":
            return method, body, headers | {"provenance": stamp.replace('kid="web/1"', 'kid="mallory/1"')}
        case "no trace context":
            return method, body, {k: v for k, v in headers.items() if k != "traceparent"}
    return method, body, headers


def say(line: str) -> None:
    """To whoever started this."""
    print(line, flush=True)


def wait_for_the_end() -> None:
    """Until SIGTERM."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()


# --- the campaign -----------------------------------------------------------------------------------------------------------


def run(
    directory: Path, *, calls: int, seed: int, transport: str = "grpc", attributes: str = "separate"
) -> dict[str, Any]:
    """The matrix: by what was done, how often, and the verdicts on it."""
    directory.mkdir(exist_ok=True)
    from provenance.keys import HMAC, KeySet, new_key, render_key_set
    from tests.campaigns.process import Collector

    keys = KeySet.of([new_key("web", 1, HMAC), new_key("mallory", 1, HMAC)])
    file, ledger = directory / "keys.json", directory / "ledger.jsonl"
    file.write_text(render_key_set(keys))
    (directory / "evidence").mkdir()
    collector = Collector(directory / "evidence")
    collector.start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "PROVENANCE_"))}
    environment |= {
        "PROVENANCE_KEYS": str(file),
        "PROVENANCE_ATTRIBUTES": attributes,
        "PYTHONPATH": str(ROOT),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.grpc_port}",
        "OTEL_BSP_MAX_QUEUE_SIZE": "65536",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }
    parts: list[subprocess.Popen[str]] = []

    def start(role: str, *arguments: object) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.campaigns.stamps", "--role", role, "--transport", transport]
        argv += map(str, arguments)
        parts.append(subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return parts[-1]

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    try:
        till = start("callee")
        address = line(till)
        proxy = start("between", "--target", address, "--seed", seed, "--ledger", ledger)
        target = line(proxy)
        web = start("caller", "--service", "web", "--target", target, "--calls", calls, "--seed", seed)
        answered = {"web": json.loads(line(web))}
        mallory = start(
            "caller", "--service", "mallory", "--target", address, "--calls", max(10, calls // 100), "--seed", seed
        )
        answered["mallory"] = json.loads(line(mallory))
        for part in (web, mallory):
            assert part.wait(60) == 0
        for part in (proxy, till):
            part.terminate()
            assert part.wait(60) in {0, -signal.SIGTERM}  # uvicorn hands the signal on when it is done
        collector.stop()  # what it acknowledged is in its file then
        return judged(collector.db, keys.by_kid, ledger) | {"calls": answered}
    finally:
        for part in parts:
            part.kill()
            part.communicate()
        collector.stop()


def judged(evidence: Path, keys: Any, ledger: Path) -> dict[str, Any]:
    """What was done, beside what is said of it."""
    from collector.client import open_source
    from collector.forensics.authenticity import verify
    from collector.forensics.tables import Window

    source = open_source(str(evidence))
    try:
        verdicts = verify(source.query, Window(), keys)
        begun = time.perf_counter()
        verify(source.query, Window(), keys)
        seconds = time.perf_counter() - begun
        ids = source.query(
            "SELECT printf('%016x', span_id) AS span_id, provenance_request_id AS request_id FROM spans "
            "WHERE service_name = 'till' AND kind = 'SERVER'"
        )
    finally:
        source.close()
    done = {row["request_id"]: row["attack"] for row in map(json.loads, ledger.read_text().splitlines())}
    request_of = dict(zip(ids["span_id"].to_list(), ids["request_id"].to_list(), strict=True))
    said: dict[str, Counter[str]] = {}
    for row in verdicts.iter_rows(named=True):
        said.setdefault(request_of[row["span_id"]], Counter())[row["verdict"]] += 1
    matrix: dict[str, Counter[str]] = {}
    missed = []
    for request_id, verdict in said.items():
        # What did not pass the proxy came from mallory, whose client's span may be lost as any span may.
        attack = done.get(request_id, ANOTHERS_KEY)
        expected = {"valid"} if attack == CLEAN else EXPECTED.get(attack, {"impersonated"})
        right = set(verdict) <= {"valid"} if attack == CLEAN else bool(expected & set(verdict))
        matrix.setdefault(attack, Counter())["tried"] += 1
        matrix[attack]["right"] += right
        if not right:
            missed.append({"attack": attack, "said": dict(verdict), "request_id": request_id})
    clean = matrix.get(CLEAN, Counter())
    return {
        "matrix": {attack: dict(counts) for attack, counts in sorted(matrix.items())},
        "false_positives_per_million": round((clean["tried"] - clean["right"]) / max(1, clean["tried"]) * 1e6, 1),
        "wrong": missed[:20],
        "verify_seconds": round(seconds, 2),
        "judged_calls": verdicts.height,
    }


def roles(transport: str) -> dict[str, Callable[[argparse.Namespace], None]]:
    """What each process does, by its role."""
    if transport == "grpc":
        return {"callee": callee, "caller": caller, "between": between}
    from tests.campaigns import stamps_http

    answering = stamps_http.asgi_callee if transport == "asgi" else stamps_http.wsgi_callee
    return {"callee": answering, "caller": stamps_http.caller, "between": stamps_http.between}


def main() -> int:
    """Run the campaign; 1 if anything was missed, or a clean call accused."""
    parser = argparse.ArgumentParser(
        prog="stamp-attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000, help="of the honest caller (default: 100,000)")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument(
        "--attributes", choices=("separate", "packed"), default="separate", help="as the services set it"
    )
    parser.add_argument("--transport", choices=TRANSPORTS, help="only over this one (default: over each in turn)")
    for hidden in ("--role", "--target", "--service"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--ledger", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        roles(options.transport)[options.role](options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = {
            transport: run(
                Path(folder) / transport,
                calls=options.calls,
                seed=options.seed,
                transport=transport,
                attributes=options.attributes,
            )
            for transport in ([options.transport] if options.transport else TRANSPORTS)
        }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if any(each["wrong"] for each in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

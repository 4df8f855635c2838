"""A checkout service over gRPC whose calls are stamped.

With a collector on this host (`provenance collect --db evidence.duckdb`), in two terminals:

    python examples/grpc_service/server.py
    python examples/grpc_service/client.py

or, without the two lines of `provenance` below, the same by environment:

    OTEL_SERVICE_NAME=checkout opentelemetry-instrument python examples/grpc_service/server.py
"""

import provenance

telemetry = provenance.instrument("checkout")

import argparse  # noqa: E402  (instrument first: what is imported afterwards is instrumented)
import signal  # noqa: E402
import threading  # noqa: E402
from concurrent import futures  # noqa: E402

import grpc  # noqa: E402
from google.protobuf.json_format import MessageToDict  # noqa: E402
from google.protobuf.struct_pb2 import Struct  # noqa: E402

PRICES = {"shirt": 25.0, "socks": 5.0}


def buy(request: Struct, context: grpc.ServicerContext) -> Struct:
    order = MessageToDict(request)
    item, count = order["item"], order["count"]
    if item not in PRICES:
        context.abort(grpc.StatusCode.NOT_FOUND, f"no {item} in stock")
    answer = Struct()
    answer.update({"item": item, "total": PRICES[item] * count})
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="A stamped gRPC service.")
    parser.add_argument("--port", type=int, default=50051, help="0 takes any free one")
    arguments = parser.parse_args()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    methods = {"Buy": grpc.unary_unary_rpc_method_handler(buy, Struct.FromString, Struct.SerializeToString)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Checkout", methods),))
    port = server.add_insecure_port(f"127.0.0.1:{arguments.port}")

    stop = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop.set())
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    stop.wait()
    server.stop(grace=2).wait()
    telemetry.shutdown()


if __name__ == "__main__":
    main()

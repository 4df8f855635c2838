"""Buys at the checkout service (server.py, next to this file); the calls are stamped.

python examples/grpc_service/client.py --calls 3
"""

import provenance

telemetry = provenance.instrument("web")

import argparse  # noqa: E402  (instrument first: what is imported afterwards is instrumented)

import grpc  # noqa: E402
from google.protobuf.struct_pb2 import Struct  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="A client that stamps its gRPC calls.")
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--calls", type=int, default=3)
    arguments = parser.parse_args()

    with grpc.insecure_channel(arguments.target) as channel:
        buy = channel.unary_unary("/shop.Checkout/Buy", Struct.SerializeToString, Struct.FromString)
        for count in range(1, arguments.calls + 1):
            order = Struct()
            order.update({"item": "shirt", "count": count})
            answer = buy(order, timeout=5)
            print(f"{count} x {answer['item']}: {answer['total']:.2f}")
    telemetry.shutdown()


if __name__ == "__main__":
    main()

"""The demo's incident 'rogue': a program without middleware or sidecar that found payment's port and refunds itself.

It waits for its line in the script (see mesh.py) and then calls a little more than once a second until it is terminated.
"""

import os
import random
import time
import uuid

import grpc
import mesh
import shop_pb2
import shop_pb2_grpc

CALLS_PER_SECOND = 1.3


def main() -> None:
    """Refund, wait, refund: a refusal is no reason to stop."""
    mesh.exit_on_sigterm()
    draw = random.Random(os.environ.get("SEED"))
    while not (incident := mesh.incident("rogue")):
        time.sleep(0.1)
    with grpc.insecure_channel(incident.target) as channel:
        payment = shop_pb2_grpc.PaymentStub(channel)
        while True:
            request = shop_pb2.RefundRequest(order_id=uuid.uuid4().hex, amount_cents=draw.randrange(100, 5000))
            try:
                payment.Refund(request, timeout=mesh.CALL_TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                print(f"refused: {error}", flush=True)
            time.sleep(draw.expovariate(CALLS_PER_SECOND))


if __name__ == "__main__":
    main()

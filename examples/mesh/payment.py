"""Takes and returns money; now and then it asks the card network, which is outside of the mesh and on its egress list."""

import os
import random
import uuid

import grpc
import httpx
import mesh
import shop_pb2
import shop_pb2_grpc

import provenance

ASK_RATIO = 0.35


class Payment(shop_pb2_grpc.PaymentServicer):
    """Most charges are authorised from a limit that is known; the others need the card network."""

    def __init__(self) -> None:
        self.card_network = httpx.Client(
            base_url=f"http://{os.environ['CARD_NETWORK']}", timeout=mesh.CALL_TIMEOUT_SECONDS
        )
        self.random = random.Random(os.environ.get("SEED"))

    def Charge(self, request: shop_pb2.ChargeRequest, _context: grpc.ServicerContext) -> shop_pb2.PaymentReply:  # noqa: N802
        """Authorise."""
        if self.random.random() < ASK_RATIO:
            body = {"order": request.order_id, "amount_cents": request.amount_cents}
            self.card_network.post("/authorizations", json=body).raise_for_status()
        return shop_pb2.PaymentReply(authorization=uuid.uuid4().hex)

    def Refund(self, _request: shop_pb2.RefundRequest, _context: grpc.ServicerContext) -> shop_pb2.PaymentReply:  # noqa: N802
        """Whoever reaches this port gets money: the mesh is supposed to be the only way to it."""
        return shop_pb2.PaymentReply(authorization=uuid.uuid4().hex)


if __name__ == "__main__":
    telemetry = provenance.instrument(service_name="payment")
    try:
        mesh.serve_grpc(lambda server: shop_pb2_grpc.add_PaymentServicer_to_server(Payment(), server))
    finally:
        telemetry.shutdown()

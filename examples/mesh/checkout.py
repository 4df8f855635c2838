"""Sells: reserves the goods, asks for the price, takes the money."""

import os
import random
import uuid

import grpc
import httpx
import mesh
import shop_pb2
import shop_pb2_grpc

import provenance

BYPASS_RATIO = 0.3


class Checkout(shop_pb2_grpc.CheckoutServicer):
    """Calls inventory over HTTP, pricing and payment over gRPC, all through the sidecar."""

    def __init__(self) -> None:
        self.payment = shop_pb2_grpc.PaymentStub(mesh.channel("payment"))
        self.pricing = shop_pb2_grpc.PricingStub(mesh.channel("pricing"))
        self.inventory = Inventory()

    def Buy(self, request: shop_pb2.BuyRequest, context: grpc.ServicerContext) -> shop_pb2.Receipt:  # noqa: N802
        """Reserve, price, charge; one that is not there or out of stock ends here."""
        reserved = self.inventory.reserve(request.sku, request.quantity)
        if reserved == httpx.codes.NOT_FOUND:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no article {request.sku}")
        if reserved == httpx.codes.CONFLICT:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{request.sku} is sold out")
        timeout = mesh.CALL_TIMEOUT_SECONDS
        price = self.pricing.Quote(shop_pb2.QuoteRequest(sku=request.sku, quantity=request.quantity), timeout=timeout)
        order_id = uuid.uuid4().hex
        charge = shop_pb2.ChargeRequest(order_id=order_id, amount_cents=price.amount_cents, card=request.card)
        self.payment.Charge(charge, timeout=timeout)
        return shop_pb2.Receipt(order_id=order_id, amount_cents=price.amount_cents)

    def Refund(self, request: shop_pb2.RefundRequest, _context: grpc.ServicerContext) -> shop_pb2.Receipt:  # noqa: N802
        """Give the money back."""
        self.payment.Refund(request, timeout=mesh.CALL_TIMEOUT_SECONDS)
        return shop_pb2.Receipt(order_id=request.order_id, amount_cents=request.amount_cents)


class Inventory:
    """The client of inventory. Its second way in is the demo's incident 'bypass': straight to the application's port."""

    def __init__(self) -> None:
        self.through_sidecar = mesh.http_client()
        self.direct = httpx.Client(timeout=mesh.CALL_TIMEOUT_SECONDS)
        self.random = random.Random(os.environ.get("SEED"))

    def reserve(self, sku: str, quantity: int) -> int:
        """The HTTP status that inventory answers."""
        body = {"quantity": quantity}
        bypass = mesh.incident("bypass")
        if bypass and self.random.random() < BYPASS_RATIO:
            return self.direct.post(f"http://{bypass.target}/items/{sku}/reserve", json=body).status_code
        return self.through_sidecar.post(f"http://inventory.demo/items/{sku}/reserve", json=body).status_code


if __name__ == "__main__":
    telemetry = provenance.instrument(service_name="checkout")
    try:
        mesh.serve_grpc(lambda server: shop_pb2_grpc.add_CheckoutServicer_to_server(Checkout(), server))
    finally:
        telemetry.shutdown()

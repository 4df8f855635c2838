"""The way in: HTTP from outside, HTTP and gRPC into the mesh."""

import fastapi
import grpc
import mesh
import pydantic
import shop_pb2
import shop_pb2_grpc
import uvicorn

import provenance

HTTP_STATUS = {grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.FAILED_PRECONDITION: 409}


class Order(pydantic.BaseModel):
    """What a customer wants."""

    sku: str
    quantity: int = 1
    card: str


class Return(pydantic.BaseModel):
    """What a customer sends back."""

    order_id: str
    amount_cents: int


def create_app() -> fastapi.FastAPI:
    """The routes; they are plain functions, so each runs in a thread and may block."""
    app = fastapi.FastAPI(title="gateway")
    checkout = shop_pb2_grpc.CheckoutStub(mesh.channel("checkout"))
    pricing = shop_pb2_grpc.PricingStub(mesh.channel("pricing"))
    inventory = mesh.http_client()

    @app.post("/buy")
    def buy(order: Order) -> dict[str, str | int]:
        request = shop_pb2.BuyRequest(sku=order.sku, quantity=order.quantity, card=order.card)
        receipt = checkout.Buy(request, timeout=mesh.CALL_TIMEOUT_SECONDS)
        return {"order_id": receipt.order_id, "amount_cents": receipt.amount_cents}

    @app.post("/refund")
    def refund(back: Return) -> dict[str, str]:
        request = shop_pb2.RefundRequest(order_id=back.order_id, amount_cents=back.amount_cents)
        return {"order_id": checkout.Refund(request, timeout=mesh.CALL_TIMEOUT_SECONDS).order_id}

    @app.get("/catalog")
    def catalog(limit: int = 20) -> dict[str, int]:
        reply = pricing.Catalog(shop_pb2.CatalogRequest(limit=limit), timeout=mesh.CALL_TIMEOUT_SECONDS)
        return {price.sku: price.amount_cents for price in reply.prices}

    @app.get("/stock/{sku}")
    def stock(sku: str) -> fastapi.Response:
        reply = inventory.get(f"http://inventory.demo/items/{sku}")
        return fastapi.Response(reply.content, reply.status_code, media_type="application/json")

    @app.exception_handler(grpc.RpcError)
    async def upstream_failed(_request: fastapi.Request, error: grpc.RpcError) -> fastapi.responses.JSONResponse:
        return fastapi.responses.JSONResponse({"error": error.details()}, HTTP_STATUS.get(error.code(), 502))

    return app


if __name__ == "__main__":
    telemetry = provenance.instrument(service_name="gateway")
    mesh.exit_on_sigterm()
    try:
        uvicorn.run(create_app(), host=mesh.HOST, port=mesh.port(), log_level="warning")
    finally:
        telemetry.shutdown()

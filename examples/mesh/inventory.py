"""Knows what is in stock. A background thread of it is the demo's incident 'egress': a leak that calls home like a clock."""

import threading
import time

import articles
import httpx
import mesh
import pydantic
import uvicorn
from starlette import applications
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import provenance

BEACON_SECONDS = 2.0


class Reservation(pydantic.BaseModel):
    """How many of an article."""

    quantity: int


async def item(request: Request) -> JSONResponse:
    """How much of one article is left."""
    sku = request.path_params["sku"]
    if sku not in articles.PRICES_CENTS:
        return JSONResponse({"error": f"no article {sku}"}, 404)
    return JSONResponse({"sku": sku, "in_stock": 1000})


async def reserve(request: Request) -> JSONResponse:
    """Set some of one article aside."""
    sku = request.path_params["sku"]
    reservation = Reservation.model_validate_json(await request.body())
    if sku not in articles.PRICES_CENTS:
        return JSONResponse({"error": f"no article {sku}"}, 404)
    if reservation.quantity > 1000:
        return JSONResponse({"error": "not that many"}, 409)
    return JSONResponse({"sku": sku, "reserved": reservation.quantity})


def leak() -> None:
    """Post to the address that the demo's script names, every `BEACON_SECONDS`, once the incident has begun."""
    with httpx.Client(timeout=mesh.CALL_TIMEOUT_SECONDS) as client:
        due = time.monotonic()
        while True:
            if egress := mesh.incident("egress"):
                client.post(f"http://{egress.target}/sync", json={"items": len(articles.PRICES_CENTS)})
            due += BEACON_SECONDS
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    telemetry = provenance.instrument(service_name="inventory")
    mesh.exit_on_sigterm()
    threading.Thread(target=leak, daemon=True).start()
    routes = [Route("/items/{sku}", item), Route("/items/{sku}/reserve", reserve, methods=["POST"])]
    try:
        uvicorn.run(applications.Starlette(routes=routes), host=mesh.HOST, port=mesh.port(), log_level="warning")
    finally:
        telemetry.shutdown()

"""A checkout service over HTTP whose calls are stamped.

With a collector on this host (`provenance collect --db evidence.duckdb`), in two terminals:

    python examples/fastapi_service/server.py
    python examples/fastapi_service/client.py
"""

import provenance

telemetry = provenance.instrument("checkout")

import argparse  # noqa: E402  (instrument first: what is imported afterwards is instrumented)
from collections.abc import AsyncIterator  # noqa: E402
from contextlib import asynccontextmanager  # noqa: E402

import uvicorn  # noqa: E402
from fastapi import FastAPI, HTTPException  # noqa: E402
from pydantic import BaseModel  # noqa: E402

PRICES = {"shirt": 25.0, "socks": 5.0}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    # Only for `opentelemetry-instrument`, whose spans would be lost: uvicorn lets the signal that stopped it end the
    # process, without `atexit`. What `instrument()` set up by itself is flushed by itself.
    telemetry.shutdown()


app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    item: str
    count: int


@app.post("/buy")
def buy(order: Order) -> dict[str, float | str]:
    if order.item not in PRICES:
        raise HTTPException(404, f"no {order.item} in stock")
    return {"item": order.item, "total": PRICES[order.item] * order.count}


def main() -> None:
    parser = argparse.ArgumentParser(description="A stamped HTTP service.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    arguments = parser.parse_args()

    config = uvicorn.Config(app, host="127.0.0.1", port=arguments.port, log_level="warning")
    listener = config.bind_socket()
    listener.listen()  # from here on nobody is refused, though uvicorn takes a moment
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

"""The customers: they know the gateway's public address and nothing of tracing.

Arrivals are a Poisson process, so the rate is steady and the gaps are not; each request is drawn by `WEIGHTS`.
Runs until SIGTERM, lets the requests in flight end, and prints {"requests": n, "failed": n} as its last line.

    GATEWAY=127.0.0.1:8080 python load.py
"""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

import articles
import httpx

REQUESTS_PER_SECOND = 12.0
WEIGHTS = {"buy": 45, "catalog": 22, "stock": 25, "refund": 8}
UNKNOWN_ARTICLE_RATIO = 0.02


class Step(NamedTuple):
    """One request of a customer."""

    method: str
    path: str
    body: dict[str, str | int] | None = None


def draw_step(draw: random.Random) -> Step:
    """What a customer does next."""
    sku = "sku-999" if draw.random() < UNKNOWN_ARTICLE_RATIO else draw.choice(list(articles.PRICES_CENTS))
    match draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]:
        case "buy":
            card = f"4{draw.randrange(10**15):015}"
            return Step("POST", "/buy", {"sku": sku, "quantity": draw.randint(1, 5), "card": card})
        case "catalog":
            return Step("GET", f"/catalog?limit={draw.choice([10, 20, 40])}")
        case "stock":
            return Step("GET", f"/stock/{sku}")
        case _:
            order_id = f"{draw.getrandbits(128):032x}"
            return Step("POST", "/refund", {"order_id": order_id, "amount_cents": draw.randrange(100, 9000)})


async def send(client: httpx.AsyncClient, step: Step, counts: Counter[str]) -> None:
    """Failed: no answer, or one that blames the servers."""
    counts["requests"] += 1
    try:
        response = await client.request(step.method, step.path, json=step.body)
    except httpx.HTTPError as error:
        counts["failed"] += 1
        print(f"{step.method} {step.path}: {error!r}", flush=True)
        return
    if response.is_server_error:
        counts["failed"] += 1
        print(f"{step.method} {step.path}: {response.status_code} {response.text}", flush=True)


async def main() -> None:
    """Send until terminated."""
    draw = random.Random(os.environ.get("SEED"))
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    counts = Counter(requests=0, failed=0)
    gateway, headers = f"http://{os.environ['GATEWAY']}", {"user-agent": "shop-app/3.2"}
    async with (
        httpx.AsyncClient(base_url=gateway, headers=headers, timeout=10.0) as client,
        asyncio.TaskGroup() as in_flight,
    ):
        while not terminated.is_set():
            in_flight.create_task(send(client, draw_step(draw), counts))
            with suppress(TimeoutError):
                await asyncio.wait_for(terminated.wait(), draw.expovariate(REQUESTS_PER_SECOND))
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

"""Buys at the checkout service (server.py, next to this file); the calls are stamped.

python examples/fastapi_service/client.py --calls 3
"""

import provenance

telemetry = provenance.instrument("web")

import argparse  # noqa: E402  (instrument first: what is imported afterwards is instrumented)

import httpx  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="A client that stamps its HTTP calls.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--calls", type=int, default=3)
    arguments = parser.parse_args()

    with httpx.Client(base_url=arguments.url, timeout=5) as client:
        for count in range(1, arguments.calls + 1):
            answer = client.post("/buy", json={"item": "shirt", "count": count}).raise_for_status().json()
            print(f"{count} x {answer['item']}: {answer['total']:.2f}")
    telemetry.shutdown()


if __name__ == "__main__":
    main()

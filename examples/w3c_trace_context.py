"""A service that calls whom it is told to call, and takes the trace along: W3C Trace Context, strictly.

    python examples/w3c_trace_context.py --port 5000

It is what the specification's own test harness (github.com/w3c/trace-context, folder `test`) wants to talk to:

    SPEC_LEVEL=2 STRICT_LEVEL=2 python test.py http://127.0.0.1:5000/test

The body of a request is a list of `{"url": ..., "arguments": ...}`: each `arguments` is posted to its `url`.
"""

import argparse

import httpx
import uvicorn
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from provenance.trace_context import W3CTraceContextPropagator


async def call_all(request: Request) -> JSONResponse:
    """One call after the other, each with a client span of its own; the answer is their status codes."""
    async with httpx.AsyncClient(trust_env=False) as client:
        HTTPXClientInstrumentor.instrument_client(client)
        calls = [await client.post(call["url"], json=call["arguments"]) for call in await request.json()]
    return JSONResponse([call.status_code for call in calls])


def main() -> None:
    parser = argparse.ArgumentParser(description="A service to test the propagation of trace context with.")
    parser.add_argument("--port", type=int, default=5000, help="0 takes any free one")
    arguments = parser.parse_args()

    propagate.set_global_textmap(W3CTraceContextPropagator())
    trace.set_tracer_provider(TracerProvider())
    app = OpenTelemetryMiddleware(Starlette(routes=[Route("/test", call_all, methods=["POST"])]))

    config = uvicorn.Config(app, host="127.0.0.1", port=arguments.port, log_level="warning")
    listener = config.bind_socket()
    listener.listen()  # from here on nobody is refused, though uvicorn takes a moment
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

"""A service of the lab: answers each call with the trace id under which it saw it, on several ports.

callee.py NAME ADDRESS PORT...
"""

import os
import socket
import sys
import threading

import uvicorn
from opentelemetry import trace
from starlette import applications
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import provenance


async def answer(request: Request) -> JSONResponse:
    """Who I am, and which trace this is: the load generator's truth is keyed by it."""
    await request.body()
    context = trace.get_current_span().get_span_context()
    return JSONResponse({"callee": sys.argv[1], "trace_id": f"{context.trace_id:032x}"})


def swallow(address: str, port: int) -> None:
    """Take datagrams, as a metrics daemon does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.bind((address, port))
        while True:
            inbox.recv(65536)


def main() -> None:
    """Serve until SIGTERM."""
    _, name, address, *ports = sys.argv
    telemetry = provenance.instrument(service_name=name)
    udp = int(os.environ["LAB_UDP_PORT"])
    threading.Thread(target=swallow, args=(address, udp), daemon=True).start()
    # Looked up after the middleware is active: it replaces the class in its module.
    app = applications.Starlette(routes=[Route("/{rest:path}", answer, methods=["GET", "POST"])])
    listeners = [socket.create_server((address, int(port)), backlog=512) for port in ports]
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=300))
    try:
        server.run(sockets=listeners)
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()

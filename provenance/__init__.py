"""Stamp every call of a Python service, so that what crosses the mesh can be proven afterwards.

The three lines, before your own modules are imported (frameworks that were imported by name earlier keep their
uninstrumented classes):

    import provenance

    provenance.instrument("checkout")

From then on gRPC and HTTP calls carry a stamp (a SHA-256 of the request, who made the call, when, a nonce), spans say
what both sides saw, and OTLP takes them to a collector, http://127.0.0.1:4317 unless `endpoint=` or
`OTEL_EXPORTER_OTLP_ENDPOINT` says otherwise. Without touching code: `opentelemetry-instrument python service.py`.

Nothing here breaks, delays or alters a call: what fails in our code is logged by the logger `provenance` and counted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provenance.http.asgi import ProvenanceMiddleware
    from provenance.http.wsgi import ProvenanceWSGIMiddleware
    from provenance.setup import Handle, instrument

__all__ = ["Handle", "ProvenanceMiddleware", "ProvenanceWSGIMiddleware", "instrument"]

_HOME = {
    "Handle": "provenance.setup",
    "ProvenanceMiddleware": "provenance.http.asgi",
    "ProvenanceWSGIMiddleware": "provenance.http.wsgi",
    "instrument": "provenance.setup",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: `import provenance` alone costs next to nothing."""
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOME[name]), name)

"""HTTP: one thin shell for httpcore (httpx) on the client side, one for ASGI on the server side.

Nothing here imports a framework until it is activated.
"""

from provenance.http.asgi import ProvenanceMiddleware

__all__ = ["ProvenanceMiddleware"]

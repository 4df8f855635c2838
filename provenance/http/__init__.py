"""HTTP: thin shells for httpcore (httpx), urllib3 (requests) and aiohttp on the client side, for ASGI and WSGI on the other.

Nothing here imports a framework until it is activated.
"""

from provenance.http.asgi import ProvenanceMiddleware
from provenance.http.wsgi import ProvenanceWSGIMiddleware

__all__ = ["ProvenanceMiddleware", "ProvenanceWSGIMiddleware"]

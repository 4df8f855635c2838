"""HTTP: thin shells for httpcore (httpx), urllib3 (requests) and aiohttp on the client side, for ASGI and WSGI on the other.

Nothing here imports a framework, or another shell, until it is activated.
"""

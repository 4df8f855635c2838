"""Enforce mode for WSGI: refused requests get 401, and whoever reads a body that was altered on the way gets an error at its end."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from provenance import names
from provenance.enforcement import ALTERED, Guard, body_refusal
from provenance.incoming import promised_hash

Environ = MutableMapping[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

ENFORCED: Final = "provenance.enforced"
"""In the environ of a request whose stamp has been judged."""


class AlteredBodyError(OSError):
    """The body is not the one that was promised; what was read of it must not be used."""


@dataclass(frozen=True, slots=True)
class GuardedWSGIApp:
    """Calls `app` if the stamp proves the sender, with a body that can only be read to its end if it is what was promised.

    `watch` makes the request's input one that knows its hash at its end, and calls back then. `refused` is called before a request
    is refused that the application has not seen.
    """

    app: WSGIApp
    guard: Guard
    headers: Mapping[str, str]
    target: str
    watch: Callable[[Environ, Callable[[str], None]], None]
    refused: Callable[[], None]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        method = str(environ.get("REQUEST_METHOD", ""))
        refusal = self.guard.refusal(self.headers, method=method, target=self.target)
        if refusal is not None:
            self.refused()
            return _refuse(start_response, refusal)
        promised = promised_hash(self.headers.get(names.CONTENT_DIGEST))
        if promised is None:
            return self.app(environ, start_response)

        def check(actual: str) -> None:
            if body_refusal(promised, actual):
                raise AlteredBodyError(ALTERED)

        self.watch(environ, check)
        try:
            return self.app(environ, start_response)
        except AlteredBodyError:  # what its framework did not make an answer of, and so nothing has begun
            return _refuse(start_response, ALTERED)


def _refuse(start_response: StartResponse, reason: str) -> Iterable[bytes]:
    body = f"{reason}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("WWW-Authenticate", "Provenance"),  # RFC 9110 section 15.5.2 wants one with every 401
    ]
    start_response("401 Unauthorized", headers)
    return [body]

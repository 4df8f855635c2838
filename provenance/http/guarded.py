"""Enforce mode for ASGI: refused requests get 401, and what was altered on the way never reaches the application in full."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from provenance import names
from provenance.digest import RunningHash
from provenance.enforcement import ALTERED, Guard, body_refusal
from provenance.http.messages import ASGIApp, Message, Receive, Scope, Send, target_of
from provenance.incoming import promised_hash


@dataclass(frozen=True, slots=True)
class GuardedApp:
    """Calls `app` if the stamp proves the sender, and hands it the body's last piece only if it is the body that was promised.

    Of a body in pieces the application has the earlier ones by then; it is told that the client is gone, as it is where one
    breaks off, and what it still answers is not sent. `refused` is called before a request is refused that it has not seen.
    """

    app: ASGIApp
    guard: Guard
    headers: Mapping[str, str]
    refused: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        refusal = self.guard.refusal(self.headers, method=scope.get("method", ""), target=target_of(scope))
        if refusal is not None:
            self.refused()
            await _refuse(send, refusal)
            return
        promised, body = promised_hash(self.headers.get(names.CONTENT_DIGEST)), RunningHash()
        has_begun = is_refused = False

        async def checked_receive() -> Message:
            nonlocal is_refused
            message = await receive()
            if promised is None or message["type"] != "http.request":
                return message
            body.update(message.get("body", b""))
            if message.get("more_body", False) or body_refusal(promised, body.hexdigest()) is None:
                return message
            is_refused = True
            if not has_begun:
                await _refuse(send, ALTERED)
            return {"type": "http.disconnect"}

        async def checked_send(message: Message) -> None:
            nonlocal has_begun
            if not is_refused:
                has_begun = True
                await send(message)

        await self.app(scope, checked_receive, checked_send)


async def _refuse(send: Send, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Provenance"),  # RFC 9110 section 15.5.2 wants one with every 401
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})

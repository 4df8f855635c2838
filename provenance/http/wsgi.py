"""Stamps on incoming HTTP requests: a WSGI middleware that watches `wsgi.input` and the response, and never buffers.

It has to run inside the server span. `ProvenanceWSGIMiddleware(app)` therefore does its work where it finds one, and
hands on to the application where it does not. Spans that start within an application are found by `http.flask` and
`http.django`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import MAX_PORT, socket_attributes
from provenance.context import serving
from provenance.enforcement import current_guard
from provenance.faults import Contained
from provenance.http.guarded_wsgi import ENFORCED, Environ, GuardedWSGIApp, StartResponse, WSGIApp
from provenance.http.messages import has_no_body, request_attributes, watched_span
from provenance.http.passing import PassingHash
from provenance.http.refusals import refused_span
from provenance.spans import FOREIGN_TO_HTTP, RecordingSpan, add_attributes, own_span

PLACE: Final = "http.wsgi"

_INPUT: Final = "wsgi.input"
_FILE_WRAPPER: Final = "wsgi.file_wrapper"
_READS_INTO: Final = frozenset({"readinto", "readinto1"})
_READS_NOTHING: Final = frozenset({"close", "closed", "isatty", "mode", "name", "peek", "readable", "seekable", "tell"})


class ProvenanceWSGIMiddleware:
    """Wrap a WSGI application, inside the middleware that starts its server span."""

    def __init__(self, app: WSGIApp) -> None:
        self.app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        return serve(self.app, environ, start_response)


def serve(app: WSGIApp, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Call `app`, watched if this is the outermost place inside the request's own server span."""
    headers: dict[str, str] = {}
    request: WatchedRequest | None = None
    with Contained(PLACE):
        headers = environ_headers(environ)
        span = unwatched_span()
        if span is not None:
            request = WatchedRequest(span, environ, headers, watched_input(environ, headers))
    guard = current_guard()
    if guard is not None and ENFORCED not in environ:
        environ[ENFORCED] = True
        refused = partial(_describe_refused, environ, headers)
        app = GuardedWSGIApp(app, guard, headers, environ_target(environ), _check_at_the_end, refused)
    if request is None:
        with serving(headers.get(names.REQUEST_ID)):
            return app(environ, start_response)
    return _watch(request, app, environ, start_response)


def _describe_refused(environ: Environ, headers: dict[str, str]) -> None:
    method = str(environ.get("REQUEST_METHOD", ""))
    with Contained(PLACE), refused_span(headers, method=method, target=environ_target(environ)) as span:
        if span is not None:
            WatchedRequest(span, environ, headers, None).finish()


def _check_at_the_end(environ: Environ, check: Callable[[str], None]) -> None:
    if _INPUT in environ and (source := watched_input(environ, environ_headers(environ))) is not None:
        source.check = check


def unwatched_span() -> RecordingSpan | None:
    """The request's own server span, if nobody watches for it yet; never that of a request around this one."""
    span = own_span(SpanKind.SERVER, FOREIGN_TO_HTTP)
    return None if span is watched_span.get() else span


@contextmanager
def watching(span: RecordingSpan | None) -> Iterator[None]:
    """While somebody watches for this span: what is called in-process must not write on it."""
    token = watched_span.set(span)
    try:
        yield
    finally:
        watched_span.reset(token)


def _watch(request: "WatchedRequest", app: WSGIApp, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    sends_file = _file_detector(environ)

    def watched_start_response(*args: Any, **kwargs: Any) -> Any:
        write = start_response(*args, **kwargs)

        def counted_write(piece: bytes) -> Any:
            with Contained(PLACE):
                request.sending(piece)
            return write(piece)

        return counted_write

    try:
        with request.served():
            result = app(environ, watched_start_response)
    except BaseException:
        with Contained(PLACE):
            request.finish()
        raise
    if sends_file(result):  # the server knows it by its class or identity, and sends it itself
        with Contained(PLACE):
            request.sent_bytes = None
            request.finish()
        return result
    if type(result) in {list, tuple}:  # all there: servers ask for its length
        with Contained(PLACE):
            for piece in result:
                request.sending(piece)
            request.finish()
        return result
    return (WatchedSizedResponse if hasattr(result, "__len__") else WatchedResponse)(result, request)


def _file_detector(environ: Environ) -> Callable[[object], bool]:
    """Tells what `wsgi.file_wrapper` made: an instance, or, where the server has a function (uWSGI), what it returned."""
    wrapper = environ.get(_FILE_WRAPPER)
    if wrapper is None:
        return lambda _result: False
    if isinstance(wrapper, type):
        return lambda result: isinstance(result, wrapper)
    made: list[object] = []

    def remembering(*args: Any, **kwargs: Any) -> Any:
        made.append(wrapper(*args, **kwargs))
        return made[-1]

    environ[_FILE_WRAPPER] = remembering
    return lambda result: any(result is each for each in made)


class WatchedInput:
    """A request's body as the application reads it, hashed on its way.

    `length` is how many bytes it has; None: not known ahead, and complete at its end, if the stream `ends` with the
    body. Whatever else the stream has is found here too; what might read past the hash costs the hash.
    """

    def __init__(self, stream: Any, *, length: int | None, ends: bool) -> None:
        self._stream = stream
        self._length = length
        self._ends = ends
        self._lines: Iterator[bytes] | None = None
        self.hash = PassingHash(PLACE)
        self.check: Callable[[str], None] | None = None
        """Is told the hash once it is complete; what it raises, the reader gets."""

    def read(self, *args: Any) -> bytes:
        """All of it, or as much as was asked for."""
        piece: bytes = self._stream.read(*args)
        self._took(piece, args, all_unless_asked=True)
        return piece

    def readline(self, *args: Any) -> bytes:
        """One line, or as much of it as was asked for."""
        line: bytes = self._stream.readline(*args)
        self._took(line, args)
        return line

    def readlines(self, *args: Any) -> list[bytes]:
        """All lines, or about as many bytes as was asked for."""
        lines: list[bytes] = self._stream.readlines(*args)
        self._took(b"".join(lines), args, all_unless_asked=True)
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._lines is None:
            self._lines = iter(self._stream)
        line = next(self._lines, b"")
        self._took(line, ())
        if not line:
            raise StopIteration
        return line

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._stream, name)
        if name in _READS_INTO:
            return self._reading_into(attribute)
        if name == "read1":
            return self._reading(attribute)
        if name == "seek":
            return self._seeking(attribute)
        if name not in _READS_NOTHING:
            self.hash.lose()
        return attribute

    def watch_end(self) -> bool:
        """Whether all of the body went by."""
        if self._length is not None and (running := self.hash.so_far) is not None and running.size == self._length:
            self.hash.end()
        return self.hash.complete is not None

    def _reading(self, read: Callable[..., bytes]) -> Callable[..., bytes]:
        def watched_read(*args: Any) -> bytes:
            piece = read(*args)
            self._took(piece, args)
            return piece

        return watched_read

    def _reading_into(self, readinto: Callable[[Any], int | None]) -> Callable[[Any], int | None]:
        def watched_readinto(buffer: Any) -> int | None:
            count = readinto(buffer)
            piece = b""
            with Contained(PLACE):
                piece = bytes(memoryview(buffer)[: count or 0])
            self._took(piece, (len(buffer) if count is not None else 0,))
            return count

        return watched_readinto

    def _seeking(self, seek: Callable[..., int]) -> Callable[..., int]:
        def watched_seek(*args: Any) -> int:
            at = seek(*args)
            if at == 0:
                self.hash.begin()
            else:
                self.hash.lose()
            return at

        return watched_seek

    def _took(self, piece: bytes, asked: tuple[Any, ...], *, all_unless_asked: bool = False) -> None:
        if piece:
            self.hash.complete = None
            self.hash.take(piece)
        limited = bool(asked) and isinstance(asked[0], int) and asked[0] >= 0
        nothing_left = not piece and not (limited and asked[0] == 0)
        if self._length is None and self._ends and (nothing_left or (all_unless_asked and not limited)):
            self.hash.end()
        if self.check is not None and self.watch_end() and self.hash.complete is not None:
            self.check(self.hash.complete.hexdigest())


class WatchedRequest:
    """What one request shows of itself, and the attributes that follow from it."""

    __slots__ = ("_environ", "_finished", "_headers", "_input", "sent_bytes", "span")

    def __init__(
        self, span: RecordingSpan, environ: Environ, headers: dict[str, str], source: WatchedInput | None
    ) -> None:
        self.span = span
        self._environ = environ
        self._headers = headers
        self._input = source
        self._finished = False
        self.sent_bytes: int | None = None

    @contextmanager
    def served(self) -> Iterator[None]:
        """While the application runs for this request, in its call or for the next piece of its response."""
        with serving(self._headers.get(names.REQUEST_ID)), watching(self.span):
            yield

    def sending(self, piece: bytes) -> None:
        """Count a piece of the response."""
        self.sent_bytes = (self.sent_bytes or 0) + len(piece)

    def finish(self) -> None:
        """Set the attributes, once."""
        if not self._finished and self.span.is_recording():
            self._finished = True
            add_attributes(self.span, self._attributes(), peer_of(self._environ))

    def _attributes(self) -> dict[str, str | int]:
        source = self._input
        body = source.hash.complete if source is not None and source.watch_end() else None
        is_head = self._environ.get("REQUEST_METHOD") == "HEAD" and self.sent_bytes is not None
        return request_attributes(
            self._headers,
            body,
            0 if is_head else self.sent_bytes,
            method=str(self._environ.get("REQUEST_METHOD", "")),
            target=environ_target(self._environ),
        )


class WatchedResponse:
    """A response's body as the server takes it: its end is the request's end."""

    def __init__(self, result: Iterable[bytes], request: WatchedRequest) -> None:
        self._result = result
        self._request = request
        self._pieces: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            with self._request.served():
                if self._pieces is None:
                    self._pieces = iter(self._result)
                piece = next(self._pieces)
        except BaseException as e:
            with Contained(PLACE):
                if isinstance(e, StopIteration):
                    self._request.sending(b"")
                self._request.finish()
            raise
        with Contained(PLACE):
            self._request.sending(piece)
        return piece

    def __getattr__(self, name: str) -> Any:
        if name != "close":
            return getattr(self._result, name)
        close = self._result.close  # type: ignore[attr-defined]  # an AttributeError is what is wanted where it has none

        def watched_close() -> None:
            try:
                with self._request.served():
                    close()
            finally:
                with Contained(PLACE):
                    self._request.finish()

        return watched_close


class WatchedSizedResponse(WatchedResponse):
    """One that knows how many pieces it has: servers make a Content-Length of that."""

    def __len__(self) -> int:
        return len(self._result)  # type: ignore[arg-type]


def environ_headers(environ: Environ) -> dict[str, str]:
    """The request's headers by lowercase name; the server has joined several lines of one name already."""
    headers = {
        key[5:].replace("_", "-").lower(): value
        for key, value in environ.items()
        if key.startswith("HTTP_") and isinstance(value, str)
    }
    if length := environ.get("CONTENT_LENGTH"):
        headers["content-length"] = str(length)
    return headers


def environ_target(environ: Environ) -> str:
    """Path and query: as they came where the server tells (gunicorn, uWSGI), else with the path's escapes made again."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw:
        return str(raw)
    path = quote(f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}".encode("latin-1", "replace"))
    query = environ.get("QUERY_STRING", "")
    return f"{path}?{query}" if query else path


def watched_input(environ: Environ, headers: dict[str, str]) -> WatchedInput | None:
    """Put a watched `wsgi.input` in the place of the server's."""
    if _INPUT not in environ:
        return None
    version = str(environ.get("SERVER_PROTOCOL", "")).removeprefix("HTTP/")
    length = body_length(version, headers)
    ends = bool(environ.get("wsgi.input_terminated"))
    source = environ[_INPUT] = WatchedInput(environ[_INPUT], length=length, ends=ends)
    return source


def body_length(version: str, headers: dict[str, str]) -> int | None:
    """How many bytes a request's body has, by its headers; None if they do not say."""
    if has_no_body(version, headers):
        return 0
    length = "" if "transfer-encoding" in headers else headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def peer_of(environ: Environ) -> dict[str, str | int]:
    """`network.peer.address` and `.port` of whom the server speaks with."""
    port = str(environ.get("REMOTE_PORT", ""))
    known = port.isascii() and port.isdigit() and int(port) <= MAX_PORT
    return socket_attributes((environ.get("REMOTE_ADDR"), int(port) if known else 0))

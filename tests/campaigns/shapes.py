"""HTTP/1.1 requests of odd shapes: smuggling, nonsense, and what is far too long."""

import random

from tests.campaigns import wire
from tests.campaigns.hostile import MIB

POST = b"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-protobuf\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

SHAPES: dict[str, bytes] = {
    "length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + SMUGGLED,
    "lengths in one line": POST + b"Content-Length: 0, 44\r\n\r\n" + SMUGGLED,
    "a length with a sign": POST + b"Content-Length: +4\r\n\r\nabcd",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length of 5,000 digits": POST + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n",
    "a length of other digits": POST + "Content-Length: \u00b2\r\n\r\n".encode("latin-1"),
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then not": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked with a space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk size with a sign": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "a chunk size of 100 digits": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100 + b"\r\n",
    "a long chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * 2 * MIB + b"\r\nx\r\n0\r\n\r\n",
    "long trailers": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"t: v\r\n" * 400_000 + b"\r\n",
    "bare line feeds": POST.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n",
    "a folded header": POST + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a NUL": POST + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a carriage return": POST + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "one header of 8 MiB": POST + b"X: " + b"a" * 8 * MIB + b"\r\n\r\n",
    "a million headers": POST + b"X: a\r\n" * 1_000_000 + b"\r\n",
    "a path of 8 MiB": b"GET /" + b"a" * 8 * MIB + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "an absolute address": b"GET http://evil.example/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "another host": b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET /metrics HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
    "dots": b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/0.9": b"GET /metrics\r\n\r\n",
    "HTTP/9.9": b"GET /metrics HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/2 in clear text": wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0),
    "an upgrade": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
    "a web socket": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "a promise of 100": POST + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "noise": random.Random(1).randbytes(100_000),
    "a thousand requests in a row": (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") * 1_000,
    "a content type of 60 KB": b"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: " + b"a" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "encodings": POST + b"Content-Encoding: " + b"gzip, " * 5_000 + b"gzip\r\nContent-Length: 0\r\n\r\n",
}  # fmt: skip

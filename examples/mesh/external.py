"""Something outside of the mesh that answers every POST: the card network, or where a leak goes.

python external.py 127.0.0.7 9000
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = b'{"ok": true}\n'


class Answer(BaseHTTPRequestHandler):
    """200, whatever was sent."""

    protocol_version = "HTTP/1.1"
    # Headers and body in one segment: in two, the second waits for the client's delayed acknowledgement of the first, now and then for 40 ms.
    wbufsize = -1

    def do_POST(self) -> None:
        """Read the request to its end, so that the connection can be used again."""
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()

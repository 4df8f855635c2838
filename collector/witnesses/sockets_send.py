"""Reports on their way to a collector: kept while it is away, within a bound, and sent again in order.

`Outbox` decides, `Sender` acts. The standard library's HTTP alone: a witness runs in every pod and should be small.
"""

import gzip
import http.client
import json
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from collector.errors import ConfigError
from collector.witnesses.sockets_watch import Report

PATH: Final = "/v1/sockets"
MAX_KEPT_BYTES: Final = 4 * 1024 * 1024
"""Compressed; some hours of an ordinary pod. Beyond it the oldest reports go first, and are counted."""

_TIMEOUT_S: Final = 10.0
_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
"""The same statuses as OTLP's, and 500: a defect of the collector's is no reason to lose a report."""

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a collector, or the way to it, said: a status and a reason; status None where nobody answered."""

    status: int | None
    reason: str = ""

    @property
    def is_delivered(self) -> bool:
        """Whether the report is in the store."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_temporary(self) -> bool:
        """Whether the same report may be taken later."""
        return self.status is None or self.status in _RETRIED


Post = Callable[[bytes], Answer]


class Outbox:
    """Reports that are not delivered yet, oldest first.

    Attributes:
        lost: Reports that were dropped, for want of room or because the collector refused them.
        complaint: Why the last delivery failed; empty when it did not.
    """

    def __init__(self, post: Post, *, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._post = post
        self._max_kept_bytes = max_kept_bytes
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._not_before = 0.0
        self._wait_s = _FIRST_WAIT_S
        self.lost = 0
        self.complaint = ""

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, report: Report) -> None:
        """Keep one more; the oldest make room for it, and one that is larger than all the room is lost."""
        body = gzip.compress(json.dumps(report.document(), separators=(",", ":")).encode(), compresslevel=1)
        self._kept.append(body)
        self._kept_bytes += len(body)
        while self._kept_bytes > self._max_kept_bytes:
            self._kept_bytes -= len(self._kept.popleft())
            self.lost += 1

    def deliver(self, now: float, *, is_last: bool = False) -> None:
        """Send what waits, as far as the collector takes it; after a failure not before some seconds have passed, unless it is the last time."""
        if now < self._not_before and not is_last:
            return
        while self._kept:
            answer = self._post(self._kept[0])
            if not answer.is_delivered:
                self.complaint = answer.reason
                if answer.is_temporary:
                    self._not_before = now + self._wait_s
                    self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
                    return
                self.lost += 1
            else:
                self.complaint, self._wait_s = "", _FIRST_WAIT_S
            self._kept_bytes -= len(self._kept.popleft())


class Sender:
    """Posts to one collector over a connection that is kept; raises ConfigError for a URL or files that cannot be used."""

    def __init__(self, url: str, *, token_file: Path | None = None, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as e:
            raise ConfigError(f"--collector {url}: {e}") from e
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ConfigError(
                f"--collector {url}: expected http://HOST:PORT or https://HOST:PORT, as `collect` says it"
            )
        self._url = f"{parts.scheme}://{parts.netloc}"
        self._token_file = token_file
        self._connection = _connection(parts.scheme, parts.hostname, port, ca_file)
        if token_file is not None:
            self._token()

    def post(self, body: bytes) -> Answer:
        """Send one report."""
        try:
            headers = {"content-type": "application/json", "content-encoding": "gzip", **self._authorization()}
            self._connection.request("POST", PATH, body, headers)
            response = self._connection.getresponse()
            text = response.read(4096).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, ConfigError) as e:
            self._connection.close()
            return Answer(None, f"{self._url}: {e or type(e).__name__}")
        if response.will_close or response.length:
            self._connection.close()
        return Answer(response.status, "" if response.status < 300 else f"{self._url}: {response.status} {text[:300]}")

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _authorization(self) -> dict[str, str]:
        return {} if self._token_file is None else {"authorization": f"Bearer {self._token()}"}

    def _token(self) -> str:
        """The file's first token, read each time, so that it may rotate."""
        assert self._token_file is not None  # noqa: S101 - narrowed by both callers
        try:
            lines = (line.strip() for line in self._token_file.read_text("ascii").splitlines())
            token = next((line for line in lines if line and not line.startswith("#")), "")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"--token-file {self._token_file}: {e}") from e
        if not token:
            raise ConfigError(f"--token-file {self._token_file}: no token in it")
        return token


def _connection(scheme: str, host: str, port: int | None, ca_file: Path | None) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port or 4318, timeout=_TIMEOUT_S)
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"--ca-file {ca_file}: {e}") from e
    return http.client.HTTPSConnection(host, port or 4318, timeout=_TIMEOUT_S, context=context)

"""The ways to tell: HTTP webhooks and a program. Each attempt is one `Outcome`; nothing is raised and nothing waits for long.

A webhook's URL is a secret (Slack's path, a token in a query, a password before the @): messages have its scheme, host and port,
and what httpx would say, which may quote it, is never passed on.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from collector.errors import ConfigError
from collector.watch.delivery import Delivered, Later, Outcome, Refused, outcome_of
from collector.watch.messages import alerts, document, environment, slack
from collector.watch.model import Event

ALERTS_PATH: Final = "/api/v2/alerts"
HTTP_TIMEOUT_S: Final = 10.0
EXEC_TIMEOUT_S: Final = 30.0
EXEC_ATTEMPTS: Final = 5

_BATCH: Final = 64
_STDERR_BYTES: Final = 300

# It logs every request's whole URL at INFO.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Url:
    """A webhook's URL, whose text is shown to nobody.

    Attributes:
        shown: Scheme, host and port.
        key: A digest, to know it again.
    """

    text: str = field(repr=False)
    shown: str
    key: str


def read_url(text: str, flag: str) -> Url:
    """The URL of a flag's value, or of the first line of the file that `@FILE` names; raises ConfigError, which quotes neither."""
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        lines = [line.strip() for line in _read(path, f"{flag} {text}").splitlines() if line.strip()]
        text, flag = (lines[0] if lines else ""), f"{flag} {text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        httpx.URL(text)
    except (ValueError, httpx.InvalidURL):
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"{flag}: no URL; expected something like https://alertmanager:9093, or @FILE that holds it")
    named = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{named}" + (f":{port}" if port else "")
    return Url(text, shown, hashlib.sha256(text.encode()).hexdigest()[:12])


def alertmanager_url(url: Url) -> Url:
    """The address that takes alerts: a URL without a path is an Alertmanager's, any other is taken as it is."""
    parts = urlsplit(url.text)
    return url if parts.path.strip("/") else Url(parts._replace(path=ALERTS_PATH).geturl(), url.shown, url.key)


def read_headers(path: Path) -> dict[str, str]:
    """`Name: value` lines, or one bearer token alone; raises ConfigError, which quotes none of it."""
    lines = [line.strip() for line in _read(path, f"--webhook-header-file {path}").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) == 1 and " " not in lines[0] and ":" not in lines[0]:
        return {"Authorization": f"Bearer {lines[0]}"}
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if (
            not colon
            or not name.strip()
            or not all(c.isalnum() or c in "-_" for c in name.strip())
            or not value.isascii()
        ):
            raise ConfigError(f"--webhook-header-file {path}: expected lines like `Authorization: Bearer …`")
        headers[name.strip()] = value.strip()
    if not headers:
        raise ConfigError(
            f"--webhook-header-file {path}: no header in it; expected lines like `Authorization: Bearer …`"
        )
    return headers


class Webhook:
    """Posts JSON; what it does with the answer is `outcome_of`'s."""

    attempts = None
    batch = _BATCH

    def __init__(
        self,
        url: Url,
        form: Literal["webhook", "slack"],
        *,
        header_file: Path | None = None,
        generator_url: str | None = None,
        clock: Callable[[], int] = time.time_ns,
        timeout_s: float = HTTP_TIMEOUT_S,
    ) -> None:
        self.name = f"{form} {url.shown}"
        self._url = alertmanager_url(url) if form == "webhook" else url
        self._form = form
        self._header_file = header_file
        self._generator_url = generator_url
        self._clock = clock
        # The total of an attempt: connecting, sending and reading each have a part of it.
        self._http = httpx.Client(timeout=timeout_s, follow_redirects=False)

    def send(self, events: Sequence[Event]) -> Outcome:
        """One POST."""
        try:
            headers = {} if self._header_file is None else read_headers(self._header_file)
        except ConfigError as e:
            return Later(str(e))
        body: Any = slack(events) if self._form == "slack" else alerts(events, self._clock(), self._generator_url)
        content = json.dumps(body).encode("ascii")
        headers |= {"content-type": "application/json", "idempotency-key": events[-1].event_id}
        try:
            # Nobody's answer is read: a status is all that a webhook has to say.
            with self._http.stream("POST", self._url.text, content=content, headers=headers) as response:
                return outcome_of(response.status_code, response.headers.get("retry-after"), self._clock())
        except httpx.HTTPError as e:
            return Later(_unanswered(e))
        except (httpx.InvalidURL, UnicodeError):
            return Refused("its URL cannot be used")
        except RuntimeError:  # httpx's word for a client that was closed
            return Later("the watch is stopping")

    def stop(self) -> None:
        """An attempt that is on its way ends by itself, within its timeout."""


class Program:
    """Runs a program for each event: JSON on stdin, variables, a time limit; exit code 0 is delivered."""

    attempts = EXEC_ATTEMPTS
    batch = 1

    def __init__(
        self, command: str, *, timeout_s: float = EXEC_TIMEOUT_S, environ: Mapping[str, str] | None = None
    ) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError as e:
            raise ConfigError(f"--exec {command!r}: {e}; expected a program and its arguments, no shell") from e
        if not self._argv:
            raise ConfigError("--exec: expected a program and its arguments")
        self.name = f"exec {Path(self._argv[0]).name}"
        self.key = hashlib.sha256(command.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self._timeout_s = timeout_s
        self._environ = os.environ if environ is None else environ
        self._stopping = threading.Event()

    def check_is_there(self) -> None:
        """Raises ConfigError where there is no such program now: better told at the start than with the first finding."""
        if shutil.which(self._argv[0]) is None:
            raise ConfigError(
                f"--exec: {self._argv[0]} is no program that can be executed; expected one on PATH, or the path of one"
            )

    def send(self, events: Sequence[Event]) -> Outcome:
        """One run."""
        [event] = events
        given = json.dumps(document(event)).encode("ascii") + b"\n"
        # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting for its end.
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
            stdin.write(given)
            stdin.seek(0)
            try:
                process = subprocess.Popen(  # noqa: S603 - what the operator named, without a shell
                    self._argv, stdin=stdin, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True,
                    env={**self._environ, **environment(event)},
                )  # fmt: skip
            except OSError as e:
                return Later(f"it cannot be started: {e.strerror}")
            code = self._wait(process)
            return Delivered() if code == 0 else Later(self._failure(code, _tail(stderr.fileno())))

    def stop(self) -> None:
        """A program that runs has a second left."""
        self._stopping.set()

    def _wait(self, process: "subprocess.Popen[bytes]") -> int | None:
        """Its exit code; None if it took too long, or the watch stops."""
        deadline = time.monotonic() + self._timeout_s
        while (left := deadline - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(min(left, 0.2))
            if self._stopping.is_set():
                deadline = min(deadline, time.monotonic() + 1.0)
                self._stopping.clear()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None

    def _failure(self, code: int | None, said: str) -> str:
        what = f"it did not end within {self._timeout_s:g} s" if code is None else f"it ended with {code}"
        return f"{what}: {said}" if said else what


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, _STDERR_BYTES, max(0, size - _STDERR_BYTES)).decode("utf-8", "replace").strip()
    return text.splitlines()[-1] if text else ""


def _unanswered(error: httpx.HTTPError) -> str:
    """Why, without httpx's words, which may quote the URL."""
    match error:
        case httpx.ConnectTimeout():
            return "nobody answered in time when connecting"
        case httpx.TimeoutException():
            return "it did not answer in time"
        case httpx.ConnectError() if "certificate" in str(error).lower():
            return "its certificate is not trusted"
        case httpx.ConnectError():
            return "it cannot be connected to"
        case httpx.ProxyError():
            return "the proxy on the way refused"
        case httpx.RemoteProtocolError() | httpx.NetworkError():
            return "the connection ended without an answer"
        case _:
            return f"the request failed ({type(error).__name__})"


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise ConfigError(f"{what} cannot be read: {reason}") from e

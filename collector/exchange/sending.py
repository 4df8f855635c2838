"""The sink of an import that is a running collector, ours or another: OTLP over HTTP, one request after another."""

import os
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Final, Self
from urllib.parse import unquote

import httpx
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector.errors import ConfigError, DecodeError, SourceUnreachableError
from collector.exchange.importing import Outcome, Taken
from collector.exchange.records import Rows
from collector.otlp import decode_traces

TRACES_PATH: Final = "/v1/traces"
HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
CERTIFICATE: Final = "OTEL_EXPORTER_OTLP_CERTIFICATE"

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""OTLP's specification, "Retryable Response Codes"."""

_ATTEMPTS: Final = 10
_WAIT_SECONDS: Final = 1.0
_LONGEST_WAIT_SECONDS: Final = 30.0
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)


class CollectorSink:
    """Sends requests to a collector; done when each is acknowledged."""

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        self._url = url.rstrip("/")
        headers = {"content-type": "application/x-protobuf", **_headers(environment.get(HEADERS, ""))}
        try:
            # trust_env: a proxy from the environment has no business between an investigator and a sidecar.
            self._http = httpx.Client(headers=headers, timeout=_TIMEOUT, trust_env=False, verify=_trust(environment))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{CERTIFICATE}={environment.get(CERTIFICATE)} cannot be used: {error}") from error

    def requests(self, payload: bytes) -> Iterable[Taken]:
        """Send one; raises SourceUnreachableError, DecodeError where it is refused as malformed."""
        decoded = decode_traces(payload, received_unix_nano=0)
        count = decoded.span_count + sum(decoded.rejected.values())
        response = self._post(payload)
        try:
            answer = ExportTraceServiceResponse.FromString(response.content)
        except ProtobufDecodeError as error:
            raise SourceUnreachableError(f"{self._url}{TRACES_PATH} does not answer in OTLP: {error}") from error
        refused = answer.partial_success.rejected_spans
        rejected = {answer.partial_success.error_message or "rejected": refused} if refused else {}
        return [Taken(max(0, count - refused), rejected=rejected)]

    def rows(self, rows: Rows) -> Iterable[Taken]:
        """OTLP has no word for rows."""
        raise ConfigError(
            f"{', '.join(rows.batches)}: such rows go into a file; {self._url} takes OTLP alone: import them into a file "
            "(spans of Parquet can then be exported as OTLP), or have the collector follow the log with --tail"
        )

    def finish(self, outcome: Outcome) -> Iterable[Taken]:  # noqa: ARG002 a collector keeps account of what it refuses
        """Everything was acknowledged."""
        return []

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, payload: bytes) -> httpx.Response:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._http.post(self._url + TRACES_PATH, content=payload)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise SourceUnreachableError(f"no collector answers at {self._url}: {error}") from error
            if response.status_code == 200:
                return response
            if response.status_code not in _RETRYABLE or attempt == _ATTEMPTS:
                break
            time.sleep(_retry_after(response))
        reason = _reason(response)
        if response.status_code == 400:
            raise DecodeError(reason)
        hint = f"; set {HEADERS}=authorization=Bearer%20TOKEN" if response.status_code in {401, 403} else ""
        raise SourceUnreachableError(f"{self._url}{TRACES_PATH} answered {response.status_code}: {reason}{hint}")


def _headers(text: str) -> dict[str, str]:
    """`key=value,key=value`, percent-encoded: the OpenTelemetry specification's "Specifying headers"."""
    pairs = (entry.partition("=") for entry in text.split(",") if entry.strip())
    return {key.strip().lower(): unquote(value.strip()) for key, _, value in pairs}


def _trust(environment: Mapping[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=environment.get(CERTIFICATE) or None)


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    seconds = float(value) if value.isascii() and value.isdigit() else _WAIT_SECONDS
    return min(seconds, _LONGEST_WAIT_SECONDS)


def _reason(response: httpx.Response) -> str:
    """What the Status in the body says, else the HTTP reason."""
    try:
        message: str = Status.FromString(response.content).message
    except ProtobufDecodeError:
        message = ""
    return message or response.reason_phrase

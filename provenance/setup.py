"""`provenance.instrument()`: from nothing to stamped, exported spans in one call."""

import importlib
import logging
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from provenance.enforcement import enforce, guard_of
from provenance.faults import report
from provenance.forks import Lock
from provenance.instrumentor import ProvenanceInstrumentor
from provenance.signing import sign_with

DEFAULT_ENDPOINT: Final = {"grpc": "http://127.0.0.1:4317", "http/protobuf": "http://127.0.0.1:4318"}

INSTRUMENTORS: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    # FastAPI before Starlette: imported after Starlette's classes were replaced, FastAPI would inherit the replacement
    # and have two server spans.
    # Its span for each ASGI message would be half of all spans, and says nothing of the call.
    ("fastapi", "opentelemetry.instrumentation.fastapi", "FastAPIInstrumentor", {"exclude_spans": ["receive", "send"]}),
    ("starlette", "opentelemetry.instrumentation.starlette", "StarletteInstrumentor", {}),
    ("grpc", "opentelemetry.instrumentation.grpc", "GrpcInstrumentorClient", {}),
    ("grpc", "opentelemetry.instrumentation.grpc", "GrpcInstrumentorServer", {}),
    ("grpc", "opentelemetry.instrumentation.grpc", "GrpcAioInstrumentorClient", {}),
    ("grpc", "opentelemetry.instrumentation.grpc", "GrpcAioInstrumentorServer", {}),
    ("flask", "opentelemetry.instrumentation.flask", "FlaskInstrumentor", {}),
    ("django", "opentelemetry.instrumentation.django", "DjangoInstrumentor", {}),
    ("httpx", "opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor", {}),
    ("requests", "opentelemetry.instrumentation.requests", "RequestsInstrumentor", {}),
    ("urllib3", "opentelemetry.instrumentation.urllib3", "URLLib3Instrumentor", {}),
    ("aiohttp", "opentelemetry.instrumentation.aiohttp_client", "AioHttpClientInstrumentor", {}),
)
"""Framework, the package that instruments it, its instrumentor, and what `instrument()` tells it."""

_EXPORTERS: Final = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_HTTP_PORT: Final = 4318

_log = logging.getLogger("provenance")
_lock = Lock()
_handle: "Handle | None" = None


@dataclass(frozen=True, slots=True)
class Handle:
    """What `instrument()` set up.

    Attributes:
        provider: The tracer provider that spans go to.
        owned: Whether `instrument()` made it; one that was there before stays its owner's to shut down.
    """

    provider: Any
    owned: bool

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Export what has ended so far; False if that took too long or failed."""
        force_flush = getattr(self.provider, "force_flush", None)
        return force_flush is None or bool(force_flush(int(timeout_seconds * 1000)))

    def shutdown(self) -> None:
        """Export what has ended so far, and end the provider if it is ours. Calls go on being stamped."""
        self.flush()
        if self.owned:
            self.provider.shutdown()


def instrument(
    service_name: str | None = None,
    *,
    endpoint: str | None = None,
    resource_attributes: Mapping[str, str | bool | int | float] | None = None,
    keys: str | os.PathLike[str] | None = None,
    mode: str | None = None,
) -> Handle:
    """Export spans over OTLP, activate OpenTelemetry's instrumentors and the stamps; a second call changes nothing.

    Args:
        service_name: `service.name`; else OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES; else `unknown_service`.
        endpoint: OTLP endpoint; else OTEL_EXPORTER_OTLP_(TRACES_)ENDPOINT; else the collector on this host. Port 4318
            or a path means HTTP unless OTEL_EXPORTER_OTLP_(TRACES_)PROTOCOL says otherwise.
        resource_attributes: More of the resource, over the environment's.
        keys: A JWKS file whose newest key of this service signs the stamps (`provenance keys new`), read again when it
            changes; else PROVENANCE_KEYS; else the stamps go unsigned.
        mode: `observe` or `enforce`; else PROVENANCE_MODE; else observe. Enforced, calls to this service are refused unless a
            stamp proves who made them (`provenance.enforcement`).

    Raises:
        ModeError: A mode, or a setting of it, that cannot be used.

    A tracer provider that is already set is used as it is, and then none of the first three arguments has a meaning.
    """
    global _handle  # noqa: PLW0603  (one process has one tracer provider, and one handle on it)
    with _lock:
        if keys is not None:
            sign_with(keys)
        if mode is not None:
            enforce(guard_of(os.environ, mode))
        if _handle is None:
            _handle = _set_up(service_name, endpoint, resource_attributes or {})
        return _handle


def current_handle() -> Handle | None:
    """What `instrument()` set up in this process; None before it was called."""
    return _handle


def _set_up(service_name: str | None, endpoint: str | None, attributes: Mapping[str, Any]) -> Handle:
    provider = trace.get_tracer_provider()
    owned = isinstance(provider, trace.ProxyTracerProvider)
    if owned:
        provider = TracerProvider(resource=make_resource(service_name, attributes))
        exporter = make_exporter(endpoint, os.environ)
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    elif endpoint is not None or attributes or service_name not in {None, service_name_of(provider)}:
        _log.warning(
            "provenance: a tracer provider of %r is set already and stays as it is; what instrument() was told is unused",
            service_name_of(provider),
        )
    for framework, module, name, options in INSTRUMENTORS:
        _activate(framework, module, name, options)
    ours = ProvenanceInstrumentor()
    if not ours.is_instrumented_by_opentelemetry:
        ours.instrument()
    return Handle(provider, owned)


def service_name_of(provider: object) -> object:
    """The `service.name` of a tracer provider's resource; None for a provider that has none."""
    resource = getattr(provider, "resource", None)
    return None if resource is None else resource.attributes.get(SERVICE_NAME)


def make_resource(service_name: str | None, attributes: Mapping[str, Any]) -> Resource:
    """The resource: arguments over environment over the SDK's defaults, and an instance id if nobody gave one."""
    named = {} if service_name is None else {SERVICE_NAME: service_name}
    resource = Resource.create(dict(attributes) | named)
    if resource.attributes.get(SERVICE_INSTANCE_ID):
        return resource
    return resource.merge(Resource({SERVICE_INSTANCE_ID: str(uuid.uuid4())}))


def make_exporter(endpoint: str | None, environ: Mapping[str, str]) -> SpanExporter | None:
    """The OTLP exporter that the environment asks for, else one that is installed; None, and a warning, without one."""
    if environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    asked = _first_set(environ, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    asked = asked or _protocol_of(endpoint or _first_set(environ, *_ENDPOINTS))
    for protocol in [asked] if asked else _EXPORTERS:
        if (module := _EXPORTERS.get(protocol)) and _is_installed(module):
            exporter: SpanExporter = importlib.import_module(module).OTLPSpanExporter(
                endpoint=exporter_endpoint(protocol, endpoint, environ)
            )
            return exporter
    _log.warning(
        "provenance: spans will not be exported: no OTLP exporter for %s is installed; try: pip install 'mesh-provenance[%s]'",
        asked or "gRPC or HTTP",
        "http" if asked and asked.startswith("http") else "grpc",
    )
    return None


def exporter_endpoint(protocol: str, endpoint: str | None, environ: Mapping[str, str]) -> str | None:
    """The endpoint to give an exporter; None leaves it to the exporter, which reads the environment by the rules."""
    if not endpoint and _first_set(environ, *_ENDPOINTS):
        return None
    base = endpoint or DEFAULT_ENDPOINT[protocol]
    base = base if "://" in base else f"http://{base}"
    if protocol == "grpc":
        return base
    # "the OTLP/HTTP exporter MUST construct URLs for each signal": /v1/traces below a base without a path.
    return base if urlsplit(base).path.strip("/") else f"{base.rstrip('/')}/v1/traces"


def _first_set(environ: Mapping[str, str], *keys: str) -> str:
    """The first that has a value: "SDK MUST interpret an empty value … the same way as when the variable is unset"."""
    return next((value for key in keys if (value := environ.get(key, "").strip())), "")


def _protocol_of(endpoint: str) -> str:
    """The protocol that an endpoint can only mean, by OTLP/HTTP's port or a path, which gRPC has not; else nothing."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        port = parts.port
    except ValueError:  # the exporter will say what is wrong with it
        return ""
    has_path = parts.scheme in {"http", "https"} and parts.path.strip("/") != ""
    return "http/protobuf" if has_path or port == _HTTP_PORT else ""


def _activate(framework: str, module: str, name: str, options: Mapping[str, Any]) -> None:
    if find_spec(framework) is None or not _is_installed(module):
        return
    if framework == "django" and not _django_has_settings():
        return
    try:
        instrumentor_class = getattr(importlib.import_module(module), name)
        # Not by making one to ask it: the constructor of gRPC's resets the hooks of the one that is active.
        active = getattr(instrumentor_class, "_instance", None)
        if active is None or not active.is_instrumented_by_opentelemetry:
            instrumentor_class().instrument(**options)
    except Exception as error:  # noqa: BLE001  (a broken framework must not keep its host from starting)
        report(f"{module}.{name}", error)


def _django_has_settings() -> bool:
    """Whether Django knows its settings: OpenTelemetry's instrumentor would make empty ones, which nobody can undo."""
    conf = sys.modules.get("django.conf")
    return bool(os.environ.get("DJANGO_SETTINGS_MODULE")) or (conf is not None and bool(conf.settings.configured))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False

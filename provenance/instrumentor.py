"""The entry point of `opentelemetry-instrument`: activates every shell whose framework is installed."""

import importlib
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # its module opts out of types

from provenance.egress_guard import guard_as_the_environment_says
from provenance.enforcement import enforce_as_the_environment_says
from provenance.faults import report
from provenance.patching import Patch
from provenance.signing import sign_as_the_environment_says

SHELLS: Final = (
    ("grpc", "provenance.grpc.client", "client_patches"),
    ("grpc", "provenance.grpc.server", "server_patches"),
    ("grpc", "provenance.grpc.aio_client", "client_patches"),
    ("grpc", "provenance.grpc.aio_server", "server_patches"),
    ("httpcore", "provenance.http.client", "client_patches"),
    ("urllib3", "provenance.http.urllib3", "client_patches"),
    ("aiohttp", "provenance.http.aiohttp", "client_patches"),
    ("starlette", "provenance.http.starlette", "server_patches"),
    ("flask", "provenance.http.flask", "server_patches"),
    ("django", "provenance.http.django", "server_patches"),
)
"""Framework, the module of its shell, and the function there that returns its patches."""


class ProvenanceInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # as above
    """Stamps on the calls of every framework that `SHELLS` names, before or after OpenTelemetry's own instrumentors."""

    _patches: tuple[Patch, ...] = ()

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: each shell is activated where its framework is, and left alone where it is not."""
        return ()

    def _instrument(self, **_kwargs: Any) -> None:
        if not self._patches:
            # Kept for good: a patch that could not be taken out beneath somebody's wrapper has to be woken, not doubled.
            self._patches = tuple(patch for shell in SHELLS for patch in _shell_patches(*shell))
        sign_as_the_environment_says()
        enforce_as_the_environment_says()
        guard_as_the_environment_says()
        for patch in self._patches:
            patch.apply()

    def _uninstrument(self, **_kwargs: Any) -> None:
        for patch in reversed(self._patches):
            patch.restore()


def _shell_patches(framework: str, module: str, function: str) -> tuple[Patch, ...]:
    if find_spec(framework) is None:
        return ()
    try:
        make: Callable[[], tuple[Patch, ...]] = getattr(importlib.import_module(module), function)
        return make()
    except (ImportError, AttributeError) as error:  # a framework that is broken, or not as this code knows it
        report(module, error)
        return ()

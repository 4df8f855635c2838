"""The entry point of `opentelemetry-instrument`: activates every shell whose framework is installed, once that is imported.

Not before: a service pays for the frameworks that it uses, and some (Django, httpcore) take longer to import than all the rest.
"""

import importlib
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # its module opts out of types
from wrapt import register_post_import_hook

from provenance.egress_guard import guard_as_the_environment_says
from provenance.enforcement import enforce_as_the_environment_says
from provenance.faults import report
from provenance.forks import Lock
from provenance.packing import pack_as_the_environment_says
from provenance.patching import Patch
from provenance.recording import record_as_the_environment_says
from provenance.signing import sign_as_the_environment_says

SHELLS: Final = (
    ("grpc._channel", "provenance.grpc.client", "client_patches"),  # which grpc imports for the first channel
    ("grpc._server", "provenance.grpc.server", "server_patches"),
    ("grpc", "provenance.grpc.aio_client", "client_patches"),
    ("grpc", "provenance.grpc.aio_server", "server_patches"),
    ("httpcore", "provenance.http.client", "client_patches"),
    ("urllib3", "provenance.http.urllib3", "client_patches"),
    ("aiohttp", "provenance.http.aiohttp", "client_patches"),
    ("starlette.routing", "provenance.http.starlette", "server_patches"),
    ("flask", "provenance.http.flask", "server_patches"),
    ("django.core.handlers.base", "provenance.http.django", "server_patches"),
)
"""The framework's module after whose import there is something to replace, the module of its shell, and the function there that
returns its patches."""

_lock = Lock()


class ProvenanceInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # as above
    """Stamps on the calls of every framework that `SHELLS` names, before or after OpenTelemetry's own instrumentors."""

    # Kept for good: a patch that could not be taken out beneath somebody's wrapper has to be woken, not doubled.
    _patches: tuple[Patch, ...] = ()
    _is_waiting = False
    _is_active = False

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: each shell is activated where its framework is, and left alone where it is not."""
        return ()

    def _instrument(self, **_kwargs: Any) -> None:
        self._is_active = True
        sign_as_the_environment_says()
        enforce_as_the_environment_says()
        record_as_the_environment_says()
        pack_as_the_environment_says()
        guard_as_the_environment_says()
        for patch in self._patches:
            patch.apply()
        if not self._is_waiting:
            self._is_waiting = True
            for framework, module, function in SHELLS:
                self._wait_for(framework, module, function)

    def _wait_for(self, framework: str, module: str, function: str) -> None:
        def patch_it(_framework: object) -> None:
            patches = _shell_patches(module, function)
            with _lock:
                self._patches += patches
            for patch in patches:
                if self._is_active:
                    patch.apply()

        if find_spec(framework.partition(".")[0]) is not None:
            register_post_import_hook(patch_it, framework)

    def _uninstrument(self, **_kwargs: Any) -> None:
        self._is_active = False
        for patch in reversed(self._patches):
            patch.restore()


def _shell_patches(module: str, function: str) -> tuple[Patch, ...]:
    try:
        make: Callable[[], tuple[Patch, ...]] = getattr(importlib.import_module(module), function)
        return make()
    except (ImportError, AttributeError) as error:  # a framework that is broken, or not as this code knows it
        report(module, error)
        return ()

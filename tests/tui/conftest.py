"""Snapshots of screens are SVG files: pytest-textual-snapshot 1.0 names their suffix as syrupy 4 did, syrupy 5 renamed it."""

import pytest_textual_snapshot  # type: ignore[import-untyped]  # its wheel has no py.typed

pytest_textual_snapshot.SVGImageExtension.file_extension = "svg"

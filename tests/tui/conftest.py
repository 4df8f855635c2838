"""Snapshots of screens are SVG files: pytest-textual-snapshot 1.0 names their suffix as syrupy 4 did, syrupy 5 renamed it."""

import pytest_textual_snapshot

pytest_textual_snapshot.SVGImageExtension.file_extension = "svg"

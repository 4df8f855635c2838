"""Detectors: tables in, findings out. Pure functions over Ibis expressions; no I/O."""

"""Findings as they happen: a pure state machine over rounds of detection, and the thin shells that tell people."""

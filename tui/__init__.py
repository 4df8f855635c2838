"""The terminal workbench: findings, calls, traces and their witnesses, over a file or a live collector."""

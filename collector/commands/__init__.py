"""Subcommands of `provenance`: one module each, with `main(argv) -> int`."""

"""OTLP's bytes → Arrow record batches. No socket, no clock, no database."""

from collector.otlp.decode import Decoded, decode_group, decode_traces

__all__ = ["Decoded", "decode_group", "decode_traces"]

"""The sidecar: OTLP and access logs in, one DuckDB file out, and the detectors that ask it questions."""

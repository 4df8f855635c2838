"""OTLP over gRPC and HTTP: thin shells around `ingest`, which is the one place where a request is accepted."""

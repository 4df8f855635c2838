"""The only place that opens DuckDB: one writer with group commit, and read-only readers."""

"""Records of calls that are not spans: access logs become the same Arrow record batches."""

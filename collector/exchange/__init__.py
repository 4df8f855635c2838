"""History in, history out: files of other tools and of ours → the tables, and back."""

"""The demo: a real mesh of processes, planted incidents, and a grade for what the detectors make of them."""

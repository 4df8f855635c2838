"""What runs in the lab's pods: scripts, started by their paths."""

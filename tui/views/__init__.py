"""What each screen says, as lines: pure functions from snapshots, without a widget in sight."""

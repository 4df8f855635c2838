"""What all tests share."""

import gc

from hypothesis import settings

# Hypothesis measures nothing here, because a loaded machine would fail a test by its clock alone.
settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")

# Building and compiling a detector's expression makes a million small objects that all stay: looking through them for
# garbage every 700 allocations took a fifth of the suite's time.
gc.set_threshold(50_000, 20, 20)

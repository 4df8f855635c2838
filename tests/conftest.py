"""What all tests share: Hypothesis measures nothing here, because a loaded machine would fail a test by its clock alone."""

from hypothesis import settings

settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")

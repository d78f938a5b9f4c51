"""For every test: a property is about values, so a busy machine does not fail it (Hypothesis' 200 ms would)."""

from hypothesis import settings

settings.register_profile("forwardpass", deadline=None)
settings.load_profile("forwardpass")

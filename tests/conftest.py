import os

# Before torch starts its threads: asleep while they wait, they do not fight with whatever else runs here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

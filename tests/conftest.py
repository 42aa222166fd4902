"""Property tests: the same examples on every run of CI, and few enough for the suite to stay quick."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "audit",
    derandomize=bool(os.environ.get("CI")),
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("audit")

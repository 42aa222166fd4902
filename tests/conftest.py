"""Property tests: the same examples on every run of CI, few enough for the suite to stay quick. A cache of its own."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

settings.register_profile(
    "audit",
    derandomize=bool(os.environ.get("CI")),
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("audit")

# Neither read nor fill the user's cache; matplotlib keeps its own, whose fonts take seconds to list.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

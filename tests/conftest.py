"""Property tests: the same examples on every run of CI, few enough for the suite to stay quick. A cache of its own."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "audit",
    derandomize=bool(os.environ.get("CI")),
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("audit")

# Processes of tests side by side share the cores; what a test begins is none of them.
os.environ.pop("PYTEST_XDIST_WORKER", None)
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))

# Neither read nor fill the user's cache; matplotlib keeps its own, whose fonts take seconds to list.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

"""What a machine's numbers were when someone said, with a reason, that they are good."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from audit.comparison import Report, read_report
from audit.errors import UsageError

FOLDER = Path("reports/baselines")
FILES = ("summary.csv", "findings.csv", "environment.json")
BENCH = "bench.json"  # beside the report, which is replaced as a whole
REASON = "reason.txt"


def machine_key(environment: dict[str, object]) -> str:
    """The hardware alone: the models of the audited devices and the CPU's capability, never a version."""
    devices, torch = environment.get("devices"), environment.get("torch")
    assert isinstance(devices, list) and isinstance(torch, dict)
    models = sorted({d["model"] for d in devices if d["status"] == "audited"})
    return re.sub(r"[^a-z0-9]+", "-", "-".join([*models, torch["cpu_capability"]]).lower()).strip("-")


def record(report: Path, reason: str, folder: Path = FOLDER) -> Path:
    """Stores a report as its machine's newest baseline, beside the earlier ones.

    Raises UsageError without a reason, for new findings, for a report of a part of the audit, and for no report.
    """
    if not reason.strip():
        raise UsageError('a baseline needs a reason: make baseline REASON="…"')
    current = read_report(report)
    if new := int((current.findings["status"] == "new").sum()):
        raise UsageError(f"{report} has {new} new findings: mend or acknowledge them first, then record the baseline")
    home = folder / machine_key(current.environment)
    number = 1 + max((int(p.name) for p in home.glob("[0-9]*")), default=0)
    place = home / f"{number:04d}"
    place.mkdir(parents=True)
    for file in [*(report / name for name in FILES), report.parent / BENCH]:
        if file.exists():
            shutil.copy(file, place)
    (place / REASON).write_text(reason.strip() + "\n", encoding="utf-8")
    return place


def newest(current: Report, folder: Path = FOLDER) -> Path | None:
    """The newest baseline of the report's machine."""
    return max((folder / machine_key(current.environment)).glob("[0-9]*"), default=None)

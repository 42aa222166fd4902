"""What a machine's numbers were when someone said, with a reason, that they are good."""

from __future__ import annotations

import pathlib
import shutil

from audit.base.kinds import failing
from audit.base.usage import UsageError
from audit.publish.bench import bench_file
from audit.publish.folder import report_folder
from audit.regress.comparison import Report, machine_key, read_report

FOLDER = pathlib.Path("reports/baselines")
FILES = ("summary.csv", "findings.csv", "environment.json")
REASON = "reason.txt"


def record(report: pathlib.Path, reason: str, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Stores a report, and the benchmarks made with the same torch, as its machine's newest; earlier ones stay.

    Raises UsageError without a reason, for new findings, and for no report.
    """
    if not reason.strip():
        raise UsageError('a baseline needs a reason: make baseline REASON="…"')
    current = read_report(report)
    if new := len(failing(current.findings)):
        raise UsageError(f"{report} has {new} new findings: mend or acknowledge them first, then record the baseline")
    home = folder / machine_key(current.environment)
    place = home / f"{1 + max((int(p.name) for p in _recorded(home)), default=0):04d}"
    with report_folder(place) as partial:
        for file in [*(report / name for name in FILES), *([bench_file(report)] if current.bench is not None else [])]:
            shutil.copy(file, partial)
        (partial / REASON).write_text(reason.strip() + "\n", encoding="utf-8")
    return place


def newest(current: Report, folder: pathlib.Path = FOLDER) -> tuple[Report, str] | None:
    """The newest baseline of the report's machine and profile, and which it is; no version has a say."""
    for place in _recorded(folder / machine_key(current.environment))[::-1]:
        report = read_report(place)
        if report.environment.get("profile") == current.environment.get("profile"):
            reason = (place / REASON).read_text(encoding="utf-8").strip() if (place / REASON).exists() else "no reason"
            return report, f"{place} ({reason})"
    return None


def _recorded(home: pathlib.Path) -> list[pathlib.Path]:
    return sorted(place for place in home.glob("[0-9]*") if place.name.isdigit())

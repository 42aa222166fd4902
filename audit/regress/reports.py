"""Reports on a disk: what a comparison takes of one, and those that someone said, with a reason, are good."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from audit.base.kinds import failing
from audit.base.usage import UsageError
from audit.publish.bench import bench_file, read_bench
from audit.publish.folder import MARK, report_folder
from audit.publish.tables import SCHEMA_VERSION, read_table, typed

FOLDER = pathlib.Path("reports/baselines")
FILES = ("summary.csv", "findings.csv", MARK)
REASON = "reason.txt"


@dataclass(frozen=True)
class Report:
    """A report folder's tables that a comparison needs; `unmeasured` says why there is no `bench`."""

    summary: pd.DataFrame
    findings: pd.DataFrame
    environment: dict[str, Any]
    bench: pd.DataFrame | None = None
    unmeasured: str = ""
    name: str = ""

    @property
    def side(self) -> dict[str, str]:
        """What tells one side of a comparison from another."""
        torch, devices = self.environment["torch"], self.environment["devices"]
        models = [f"{d['name']} {d['model']}" for d in devices if d["status"] == "audited"]
        return {
            "report": self.name,
            "created": str(self.environment.get("created", "")),
            "torch": f"torch {torch['version']}",
            "driver": f"driver {self.environment['driver']}" if self.environment.get("driver") else "",
            "machine": ", ".join([*models, torch["cpu_capability"]]),
        }


def machine_key(environment: dict[str, Any]) -> str:
    """The hardware alone: the models of the audited devices and the CPU's capability, never a version."""
    models = sorted({d["model"] for d in environment["devices"] if d["status"] == "audited"})
    words = "-".join([*models, environment["torch"]["cpu_capability"]])
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def read_report(folder: pathlib.Path) -> Report:
    """A report or baseline, or a run of a history, as in reports/history.csv:12.

    Raises UsageError for a folder that is none, or one of another schema version, and for a run that is not there.
    """
    history, _, run = str(folder).rpartition(":")
    if run.isdigit() and history.endswith("history.csv"):
        return _read_run(pathlib.Path(history), int(run))
    if not (folder / MARK).is_file():
        raise UsageError(f"{folder} is no report of this audit: there is no {MARK} in it")
    try:
        environment = json.loads((folder / MARK).read_text(encoding="utf-8"))
        version, torch = environment["schema_version"], environment["torch"]["version"]
        machine_key(environment)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / MARK}: not of a report of this audit: {error!r}") from None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{folder}: its tables have schema version {version}, this audit reads {SCHEMA_VERSION}")
    report = Report(read_table(folder, "summary"), read_table(folder, "findings"), environment, name=str(folder))
    file = bench_file(folder)
    if not file.exists():
        return replace(report, unmeasured=f"{folder} has no bench.json")
    bench = read_bench(file)
    if (other := bench.attrs["torch"]) != torch:
        return replace(report, unmeasured=f"{file} is of torch {other}, the report of {torch}")
    return replace(report, bench=bench)


def _read_run(file: pathlib.Path, run: int) -> Report:
    """What a history has of a run: no cases, so that only paths compare that ran on the same inputs."""
    history = read_table(file.parent, "history")
    rows = history[history["run"] == run]
    if rows.empty:
        raise UsageError(f"{file} has no run {run}: `history` shows those that are there")
    # Over cases of few and of many correct bits their median stands between two cases, and judges neither.
    summary = rows.assign(case="inputs " + rows["input_digest"].str[:12], reduction="", correct_bits_median=np.nan)
    of = rows.iloc[0]
    devices = rows[["device", "model"]].drop_duplicates().itertuples(index=False)
    environment = {name: of[name] for name in ("created", "driver")}
    environment["torch"] = {name: of[column] for name, column in (("version", "torch"), ("cpu_capability",) * 2)}
    environment["devices"] = [{"name": name, "model": model, "status": "audited"} for name, model in devices]
    name, why = f"run {run} of {file}", "a history has no benchmarks"
    return Report(summary, typed(pd.DataFrame(), "findings"), environment, unmeasured=why, name=name)


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


def newest(current: Report, folder: pathlib.Path = FOLDER) -> Report | None:
    """The newest baseline of the report's machine and profile, its reason beside its name; no version has a say."""
    for place in _recorded(folder / machine_key(current.environment))[::-1]:
        report = read_report(place)
        if report.environment.get("profile") == current.environment.get("profile"):
            reason = (place / REASON).read_text(encoding="utf-8").strip() if (place / REASON).exists() else "no reason"
            return replace(report, name=f"{place} ({reason})")
    return None


def _recorded(home: pathlib.Path) -> list[pathlib.Path]:
    return sorted(place for place in home.glob("[0-9]*") if place.name.isdigit())

"""history.csv beside the report folders: what each run gave, by path, dtype and device."""

from __future__ import annotations

import fcntl
import os
import pathlib
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import count
from typing import Any

import pandas as pd

from audit.base.usage import UsageError
from audit.publish.tables import read_table, summarise, typed, write_csv

RUNS = 500  # of some 160 rows each: 30 MB


def add_run(errors: pd.DataFrame, environment: Mapping[str, Any], out: pathlib.Path) -> str:
    """Adds a run to the history beside its report `out`, of which the newest RUNS stay.

    Runs that end at once wait for each other, and the file is replaced as a whole. One that is no history, or has an
    older one's columns, is set aside, which the text that is returned says; else it is empty. Raises UsageError where
    it cannot be written.
    """
    rows, remark = _rows(errors, environment), ""
    file = pathlib.Path(os.path.abspath(out)).parent / "history.csv"
    try:
        with file.with_name(".history.lock").open("w") as lock:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            history = typed(pd.DataFrame(), "history")
            try:
                history = read_table(file, "history") if file.exists() else history
            except UsageError:
                names = (file.with_name(f"history.csv.old{number or ''}") for number in count())
                aside = file.rename(next(name for name in names if not name.exists()))
                remark = f"{file} was no history as this audit writes it: it is now {aside.name}, and a new one begins"
            rows["run"] = 1 + history["run"].max() if len(history) else 1
            history = pd.concat([history[history["run"] > rows["run"].max() - RUNS], rows], ignore_index=True)
            partial = file.with_name(".history.partial")  # what a killed run left there is overwritten
            write_csv(history, partial, "history")
            partial.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from None
    return remark


def _rows(errors: pd.DataFrame, environment: Mapping[str, Any]) -> pd.DataFrame:
    key, torch = ["path", "dtype", "device"], environment.get("torch", {})
    errors = errors.sort_values(["case", "reduction"], kind="stable")
    digests = errors.groupby(key, sort=False)["input_digest"]
    inputs = digests.agg(lambda given: sha256("".join(sorted(given)).encode()).hexdigest())
    rows = summarise(errors.assign(case="", reduction="")).join(inputs, on=key)
    models = {device["name"]: device["model"] for device in environment.get("devices", ())}
    versions = {name: environment.get(name) for name in ("created", "audit", "driver")}
    versions |= {"torch": torch.get("version"), "cpu_capability": torch.get("cpu_capability")}
    sources = rows["path"].map(environment.get("sources", {}))
    return typed(rows.assign(run=0, model=rows["device"].map(models), source=sources, **versions), "history")

"""What the tables say of the devices: which failed the run, and whether an accelerator agrees with the CPU."""

from __future__ import annotations

import pandas as pd


def failed_devices(errors: pd.DataFrame) -> list[str]:
    """A line for each device that computed nothing, or was lost on the way: neither may pass."""
    lines = []
    for device, rows in errors.groupby("device", sort=False):
        missing = rows[rows["result_class"] == "not_computed"]
        lost = missing[missing["note"].str.startswith("device lost")]
        if len(missing) == len(rows):
            lines.append(f"{device} computed nothing: {missing['note'].mode().iloc[0]}")
        elif len(lost):
            lines.append(f"{lost['note'].iloc[0]}: {len(lost):,} results of {device} are not computed")
    return lines

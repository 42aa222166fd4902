"""What the tables say of the devices: which failed the run, and whether an accelerator agrees with the CPU."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audit.base.kinds import GATED

CPU = "cpu"


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


def agreement(errors: pd.DataFrame) -> pd.DataFrame:
    """The CPU against each accelerator, of the rows of errors.csv: a row per path, dtype and device.

    `same` is the share of results that are the same bit for bit. `agree`: both are finite or both the same, and they
    are no further apart than their two bounds together, of which `apart` is the largest share. `cpu_nearer` and
    `device_nearer` are the shares whose result is nearer the exact value; `nearer` names the device of the two where
    they differ by more than chance, else "neither".
    """
    key = ["case", "row", "path", "reduction", "dtype"]
    judged = errors[errors["kind"].isin(GATED) & (errors["result_class"] != "not_computed")]
    judged = judged[[*key, "device", "computed", "abs_error", "bound"]]
    there, here = judged[judged["device"] != CPU], judged[judged["device"] == CPU].drop(columns="device")
    both = there.merge(here, on=key, suffixes=("", "_cpu"))
    computed, other = both["computed"], both["computed_cpu"]
    same = computed.eq(other) | (computed.isna() & other.isna())
    # Of two infinities, or NaN and a number, the difference is no number, which is no agreement.
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = ((computed - other).abs() / (both["bound"] + both["bound_cpu"])).mask(same, 0.0)
    near, far = both["abs_error"] < both["abs_error_cpu"], both["abs_error"] > both["abs_error_cpu"]
    both = both.assign(same=same, agree=apart <= 1, apart=apart, cpu_nearer=far, device_nearer=near)
    table = both.groupby(["path", "dtype", "device"], sort=False, as_index=False).agg(
        results=("same", "size"),
        same=("same", "mean"),
        agree=("agree", "all"),
        apart=("apart", "max"),
        cpu_nearer=("cpu_nearer", "mean"),
        device_nearer=("device_nearer", "mean"),
    )
    # A fair coin leaves its mean by more than three standard deviations once in 370 times.
    won = (table["device_nearer"] - table["cpu_nearer"]) * table["results"]
    chance = 3 * np.sqrt((table["device_nearer"] + table["cpu_nearer"]) * table["results"])
    return table.assign(nearer=np.select([won > chance, won < -chance], [table["device"], CPU], "neither"))


def agree(errors: pd.DataFrame) -> str:
    """`agreement` in words, a sentence or two an accelerator; "" where the CPU and one do not both have results."""
    told = []
    for device, ways in agreement(errors).groupby("device", sort=False):
        wrong = ways[~ways["agree"]].sort_values("apart", ascending=False, na_position="first", kind="stable")
        names = [f"{path} in {dtype}" for path, dtype in zip(wrong["path"], wrong["dtype"], strict=True)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        results, nearer = ways["results"].sum(), ways["nearer"].value_counts()
        said = (
            f"No: {device} and the CPU give what two sound results cannot both be by {', '.join(names[:3])}{more}."
            if names
            else f"Yes: {device} and the CPU are no further apart than rounding allows in {results:,} results."
        )
        same = (ways["same"] * ways["results"]).sum() / results
        told.append(
            f"{said} {same:.0%} are the same bit for bit; of {len(ways)} ways and dtypes {device} is nearer the exact "
            f"value in {nearer.get(device, 0)}, the CPU in {nearer.get(CPU, 0)}."
        )
    return " ".join(told)

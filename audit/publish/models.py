"""What statistics.csv says of two models, and from where on its numbers are the evaluation's rounding."""

from __future__ import annotations

import pandas as pd

FLOOR = "log_softmax"


def apart(statistics: pd.DataFrame) -> list[tuple[str, str]]:
    """How far the rows of a file are apart, and how fine a difference each dtype shows: questions and answers."""
    exact = statistics[statistics["path"] == "exact"].drop_duplicates("direction").set_index("direction")
    one, other = exact.loc["target_input"], exact.loc["input_target"]
    said = (
        f"KL(target || input) is {one['mean']:.4g} ± {one['standard_error']:.2g} in the mean of {one['n']:,} rows "
        f"(median {one['p50']:.3g}, 99.9th percentile {one['p99_9']:.3g}, largest {one['maximum']:.3g}), the other "
        f"direction {other['mean']:.4g}; {one['same_top_class']:.1%} of the rows have the same top class."
    )
    if one["non_finite"]:
        said += f" {one['non_finite']:,} rows are not finite and left out."
    floors = []
    for where, group in statistics[statistics["path"] != "exact"].groupby(["dtype", "device"], sort=False):
        floors_of = group.set_index("path")["error_p99"].to_dict()
        path = FLOOR if FLOOR in floors_of else next(iter(floors_of))
        place = " on ".join(map(str, where))
        floors.append(
            f"Below {floors_of[path]:.1g} the differences you see are rounding of the evaluation in "
            f"{place}: 99 % of {path}'s errors are smaller."
        )
    return [
        ("How far apart are the two models?", said),
        ("How small a difference can be seen?", " ".join(floors)),
    ]

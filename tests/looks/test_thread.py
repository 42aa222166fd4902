"""The thread's rows: properties and wide margins, never a drift's own value or sign."""

import pandas as pd
import pytest

from audit.looks import thread
from audit.looks.thread import BINS, CENTRAL, DRAWS, MEASURES, QUOTES, measure_thread

MESSAGES = {"KLDivLoss(DATA1, DATA2)", "LogSoftmax(preds)"}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return measure_thread("cpu")


def test_every_number_the_thread_quotes_has_a_row(rows: pd.DataFrame) -> None:
    quoted = set(rows["quoted"])
    for text in ("-0.019", "-0.033", "-0.036", "-0.038", "-0.040", "1.4934e-12", "1.8763e-11", "-2.3461e-11"):
        assert text in quoted
    assert "3.5763e-05" in quoted
    assert len(rows) == len(QUOTES)


def test_distributions_have_at_least_a_thousand_draws(rows: pd.DataFrame) -> None:
    assert DRAWS >= 1000
    assert (rows.loc[~rows["subject"].isin(MESSAGES), "draws"] == DRAWS).all()


def test_both_checks_are_measured_today_and_in_the_threads_era(rows: pd.DataFrame) -> None:
    for subject in ("KLDivLoss, equal logits", "log softmax - log_softmax"):
        assert set(rows.loc[rows["subject"] == subject, "implementation"]) == {"today", "thread_era"}


def test_the_emulated_kernels_reproduce_every_quote_of_identical_logits(rows: pd.DataFrame) -> None:
    era = rows[rows["implementation"] == "thread_era"]
    assert (era["reproduced"] == "yes").all()
    assert era["negative_share"].between(0.4, 0.6).all()


def test_quantiles_are_ordered_and_the_percentile_is_that_of_the_magnitude(rows: pd.DataFrame) -> None:
    measured = rows[rows["draws"] > 1]
    columns = measured[["minimum", "p05", "median", "p95", "maximum"]].to_numpy()
    assert (columns[:, :-1] <= columns[:, 1:]).all()
    inside = measured["percentile"].between(*CENTRAL)
    assert (measured.loc[inside, "reproduced"] == "yes").all()


def test_a_histogram_counts_every_draw_between_minimum_and_maximum(rows: pd.DataFrame) -> None:
    spread = rows[rows["minimum"] < rows["maximum"]]
    counts = spread["histogram"].str.split().map(lambda words: [int(word) for word in words])
    assert (counts.map(len) == BINS).all() and (counts.map(sum) == DRAWS).all()
    assert counts.map(lambda c: c[0] > 0 and c[-1] > 0).all()
    assert (rows.loc[rows["minimum"] == rows["maximum"], "histogram"] == "").all()


def test_softmax_output_gives_a_loss_between_minus_a_tenth_and_0(rows: pd.DataFrame) -> None:
    cnn = rows[rows["subject"].str.startswith("CNN loss")]
    assert len(cnn) == 5
    assert (cnn["minimum"] >= -0.1).all()
    assert (cnn["maximum"] <= 0).all()


def test_half_the_mass_gives_c_log_c(rows: pd.DataFrame) -> None:
    row = rows[rows["subject"] == "target of mass 1/2"].iloc[0]
    # 1,000 terms in float32 about a sum of 0.35: far wider than rounding, far narrower than another formula.
    assert row["minimum"] == pytest.approx(-0.34657359, abs=1e-4)
    assert row["maximum"] == pytest.approx(-0.34657359, abs=1e-4)


def test_a_claim_that_fails_in_one_draw_is_not_reproduced(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = next(q for q in QUOTES if q["subject"].startswith("log_target"))
    key = zero["subject"], zero["implementation"]
    measured = MEASURES[key]("cpu").copy()  # type: ignore[union-attr]
    measured[3] = 1e-20
    monkeypatch.setattr(thread, "QUOTES", [zero])
    monkeypatch.setitem(MEASURES, key, lambda _: measured)
    assert measure_thread("cpu")["reproduced"].tolist() == ["no"]

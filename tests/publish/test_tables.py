"""Tables come back from CSV as they were, bit for bit."""

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import audit
from audit.base.usage import UsageError
from audit.publish.folder import report_folder
from audit.publish.tables import SCHEMAS, check, read_errors, read_table, summarise, typed, write_csv

FLOATS = [c.name for c in SCHEMAS["errors"] if c.dtype == "float64"]


def table(rows: int = 2, **columns: object) -> pd.DataFrame:
    given = {"case": "a", "row": range(rows), "path": "p", "reduction": "none", "dtype": "float32", "device": "cpu"}
    given |= {"kind": "kl", "rows": rows, "classes": 3, "reference": "0.1", "result_class": "finite", "computed": 0.5}
    given |= {"negative": False, "false_zero": False}
    return typed(pd.DataFrame(given | columns, index=range(rows)), "errors")


def bits(values: pd.Series) -> list[bytes]:
    return [struct.pack("<d", v) if v == v else b"nan" for v in values]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(numbers=st.lists(st.floats(width=64), min_size=4, max_size=4))
def test_numbers_come_back_bit_for_bit(tmp_path: Path, numbers: list[float]) -> None:
    frame = table(4, **dict.fromkeys(FLOATS, numbers))
    write_csv(frame, tmp_path / "errors.csv", "errors")
    back = read_errors(tmp_path)
    for name in FLOATS:
        assert bits(back[name]) == bits(frame[name])


def test_everything_else_comes_back_too(tmp_path: Path) -> None:
    frame = table(
        3,
        row=[0, pd.NA, 2],
        reference=["0.12345678901234567890123456789012345678901234567890", "inf", "1e-400"],
        note=["", 'a "quoted", note', "línea"],
        negative=[True, False, pd.NA],
        within_bound=pd.NA,
    )
    write_csv(frame, tmp_path / "errors.csv", "errors")
    pd.testing.assert_frame_equal(read_errors(tmp_path / "errors.csv"), frame)
    pd.testing.assert_frame_equal(audit.read_errors(tmp_path), frame)


def test_a_computed_nan_is_written_and_an_undefined_number_is_an_empty_field(tmp_path: Path) -> None:
    frame = table(2, computed=[np.nan, np.nan], result_class=["not_a_number", "not_computed"])
    write_csv(frame, tmp_path / "errors.csv", "errors")
    text = pd.read_csv(tmp_path / "errors.csv", dtype=str, keep_default_na=False)
    assert text["computed"].tolist() == ["nan", ""]
    assert text["drift"].tolist() == ["", ""]


def test_a_frame_that_is_not_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing \\['drift'\\]"):
        check(table().drop(columns="drift"), "errors")
    with pytest.raises(ValueError, match=r"errors\.rows: expected Int64, got float64"):
        check(table().assign(rows=1.5), "errors")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01"])
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "errors.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_errors(tmp_path)
    assert "errors.csv" in str(caught.value)
    with pytest.raises(UsageError):
        read_table(tmp_path / "none.csv", "thread")


def test_a_name_that_is_no_table_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(audit.UsageError, match=r"table 'error' is not one of errors, summary"):
        audit.read_table(tmp_path, "error")
    with pytest.raises(audit.UsageError, match=r"thread\.csv: cannot be read"):
        audit.read_table(tmp_path, "thread")


def test_a_summary_counts_and_takes_quantiles() -> None:
    frame = table(
        4,
        computed=[1.0, -1.0, np.nan, np.nan],
        result_class=["finite", "finite", "not_a_number", "not_computed"],
        negative=[False, True, False, pd.NA],
        false_zero=[False, False, False, pd.NA],
        scaled_error=[1.0, 3.0, np.nan, np.nan],
        correct_bits=[10.0, 20.0, np.nan, np.nan],
        within_bound=[True, False, False, pd.NA],
    )
    row = summarise(frame).iloc[0]
    assert (row["n"], row["non_finite"], row["findings"]) == (4, 1, 2)
    assert (row["scaled_error_median"], row["scaled_error_max"], row["correct_bits_median"]) == (2.0, 3.0, 15.0)
    assert row["negative_share"] == pytest.approx(1 / 3)


def test_the_digest_of_results_is_in_key_order_and_sees_every_bit() -> None:
    frame = table(2, computed=[1.0, 2.0])
    digest = summarise(frame)["computed_digest"].item()
    assert summarise(frame.iloc[::-1])["computed_digest"].item() == digest
    assert summarise(table(2, computed=[1.0, np.nextafter(2.0, 3.0)]))["computed_digest"].item() != digest
    assert summarise(table(2, computed=[-0.0, 2.0]))["computed_digest"].item() != digest


def test_a_report_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "latest"
    with report_folder(out) as folder:
        (folder / "environment.json").write_text("1")
        (folder / "old.csv").write_text("")
        assert not out.exists()
    with pytest.raises(KeyboardInterrupt), report_folder(out) as folder:
        (folder / "environment.json").write_text("2")
        raise KeyboardInterrupt
    assert (out / "environment.json").read_text() == "1"
    with report_folder(out) as folder:
        (folder / "environment.json").write_text("3")
    assert [f.name for f in out.iterdir()] == ["environment.json"]
    assert [f.name for f in tmp_path.iterdir()] == ["latest"]


def test_a_folder_that_is_no_report_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("")
    with pytest.raises(UsageError, match="it is no report"), report_folder(tmp_path / "photos"):
        pass
    assert (tmp_path / "photos" / "one.jpg").exists()

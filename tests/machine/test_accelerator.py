"""Every hazard of an accelerator, met on a device that computes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import audit
from audit.publish.answer import agreement
from audit.publish.bench import read_bench
from audit.regress.comparison import compare
from audit.regress.reports import read_report
from tests.machine import device

pytestmark = pytest.mark.skipif(not device.AVAILABLE, reason="this torch takes no device written in Python")
ROOT = Path(__file__).parents[2]
PATHS = ("log_softmax", "log_target", "kl_div_from_logits")
SMALL = ("run", "--workers", "1", "--case", "random_scale1", "--case", "near_1e-04", "--dtype", "float32",
         "--dtype", "float64", *(word for path in PATHS for word in ("--path", path)))  # fmt: skip
LOST = "device lost: AcceleratorError: CUDA error: device-side assert triggered"
OVER = "OutOfMemoryError: CUDA out of memory."
# name -> hazards, exit status, and what is said of it, on stdout or stderr.
HAZARDS: dict[str, tuple[dict[str, object], int, str]] = {
    "sound": ({}, 0, "No new problems"),
    "another default dtype": ({"default_dtype": "bfloat16"}, 0, "No new problems"),
    "full from the start": ({"full_from": 1}, 1, f"FAILED toy computed nothing: {OVER}"),
    "full later": ({"full_from": 200}, 0, f"results: {OVER}"),
    "full for a moment": ({"full_at": 60}, 0, "No new problems"),
    "room for a few rows": ({"room": 1_000}, 0, "log_softmax on toy: out of memory, computed in halves"),
    "poisoned at once": ({"poisoned_from": 1}, 2, "cannot compute on toy (An accelerator that computes on the CPU)"),
    "poisoned": ({"poisoned_from": 90}, 1, f"FAILED {LOST}: "),
    "poisoned, seen later": ({"poisoned_later": 90}, 1, f"FAILED {LOST}: "),
    "no kernels": ({"kernels": 0}, 2, "no kernel image is available for execution on the device; install a torch"),
    "no float64": ({"float64": 0}, 0, "results: TypeError: Cannot convert a MPS Tensor to float64"),
    "a hang": ({"hangs_at": 60}, 1, "FAILED device lost: TimeoutError: a kernel has not ended after 1 s"),
    "a wrong sum": ({"wrong": "sum"}, 1, "FINDING log_softmax float32 toy: beyond_bound"),
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, object]]]:
    """All hazards and the whole quick profile, in one process."""
    folder = tmp_path_factory.mktemp("toy")
    scenarios = [
        {"name": name, "hazards": hazards, "arguments": SMALL, "limit": 1.0 if "hang" in name else 30.0}
        for name, (hazards, *_) in HAZARDS.items()
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/machine/device.py"), json.dumps(scenarios), str(folder)]
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert answer.returncode == 0, answer.stderr
    return folder, {played["name"]: played for played in json.loads((folder / "played.json").read_text())}


KEY = ["case", "row", "path", "reduction", "dtype"]


def tables(folder: Path, name: str) -> dict[str, pd.DataFrame]:
    errors = audit.read_errors(folder / name)
    return {device: rows.set_index(KEY).drop(columns="device") for device, rows in errors.groupby("device")}


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_is_said_in_a_line_and_never_a_traceback(played, name: str) -> None:
    _, status, line = HAZARDS[name]
    run = played[1][name]
    said = run["out"] + run["error"]
    assert "Traceback" not in said, said
    assert run["status"] == status, said
    assert [text for text in said.splitlines() if line in text], said
    if status == 2:
        assert len(run["error"].splitlines()) == 1
        assert not (played[0] / name).exists()


@pytest.mark.parametrize("name", [name for name, (_, status, _) in HAZARDS.items() if status != 2])
def test_the_other_devices_rows_are_whole_whatever_an_accelerator_does(played, name: str) -> None:
    sound, here = tables(played[0], "sound"), tables(played[0], name)
    pd.testing.assert_frame_equal(here["cpu"], sound["cpu"])
    assert here["toy"].index.equals(sound["toy"].index)
    computed = here["toy"]["result_class"] != "not_computed"
    assert (here["toy"].loc[~computed, "note"] != "").all()
    if name in ("sound", "another default dtype"):
        assert computed.all()
    if name == "room for a few rows":
        assert (computed == computed.index.get_level_values("row").notna()).all()
    if name == "no float64":
        assert (computed == (computed.index.get_level_values("dtype") == "float32")).all()
        computed &= computed.index.get_level_values("path") != "kl_div_from_logits"  # which then takes float32
    if name != "a wrong sum":
        pd.testing.assert_frame_equal(here["toy"][computed], sound["toy"][computed])


OTHERWISE = ("autocast", "kl_div_from_logits")  # in float32 on an accelerator; in another way on a CPU
TABLES = ("errors", "summary", "gradients", "elements", "attribution", "growth", "invariance", "thread")


@pytest.mark.parametrize("name", TABLES)
def test_the_quick_profile_gives_an_accelerator_the_cpus_tables_row_by_row(played, name: str) -> None:
    table = audit.read_table(played[0] / "whole", name)
    if "path" in table:  # scipy's are on a CPU alone
        table = table[~(table["path"].isin(OTHERWISE) | table["path"].str.startswith("scipy"))]
    if "note" in table:  # an exception names the class of a tensor
        table["note"] = table["note"].str.replace("Toy", "Tensor")
    if name == "thread":
        table = table.drop(columns="observed")  # an exception names the class of a tensor
    if name == "invariance":  # which the two have not all in common
        assert not table.loc[table["check"] == "on the CPU", "changed_share"].any()
        table = table[~table["check"].isin(["on the CPU", "one thread", "compiled"])]
    here, there = (table[table["device"] == d].drop(columns="device").reset_index(drop=True) for d in ("cpu", "toy"))
    assert len(here) > 5
    pd.testing.assert_frame_equal(here, there)


def test_autocast_is_held_to_float32_on_an_accelerator(played) -> None:
    errors = audit.read_table(played[0] / "whole", "errors").query("path == 'autocast' and dtype == 'float16'")
    assert errors.loc[~errors["case"].str.startswith("impossible"), "within_bound"].all()
    assert (errors["result_dtype"] == "float32").all()
    median = errors.groupby("device")["bound"].median()
    assert median["toy"] < median["cpu"] / 100


def test_what_is_known_of_the_cpu_alone_is_new_on_an_accelerator(played) -> None:
    findings = audit.read_table(played[0] / "whole", "findings")
    new, known = findings[findings["status"] == "new"], findings[findings["device"] == "cpu"]
    assert set(new["device"]) == {"toy"} and set(new["cause"]) == {"half_rounded_sum"}
    assert set(known.loc[known["cause"] == "half_rounded_sum", "acknowledged_by"]) == {"half-sum-of-exponentials"}


def test_a_table_says_whether_the_devices_agree_and_which_is_nearer_the_truth(played) -> None:
    whole = agreement(audit.read_table(played[0] / "whole", "errors")).set_index(["path", "dtype"])
    assert whole["agree"].all()
    log_softmax = whole.loc["log_softmax"]
    assert (log_softmax["same"] == 1).all() and (log_softmax["nearer"] == "neither").all()
    assert whole.loc[("autocast", "bfloat16"), "nearer"] == "toy"
    wrong = agreement(audit.read_errors(played[0] / "a wrong sum")).set_index(["path", "dtype"])
    assert not wrong.loc["log_softmax", "agree"].any() and (wrong.loc["log_softmax", "nearer"] == "cpu").all()
    for name, said in (("sound", "Yes: toy and the CPU"), ("a wrong sum", "No: toy and the CPU")):
        assert said in played[1][name]["out"] and said in (played[0] / name / "report.md").read_text()


def test_a_comparison_tells_the_device_that_became_worse(played) -> None:
    changes = compare(read_report(played[0] / "sound"), read_report(played[0] / "a wrong sum"))
    assert set(changes.loc[changes["worse"], "device"]) == {"toy"}


def test_benchmarks_run_on_an_accelerator_where_its_paths_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.machine.device", "tests/benchmarks/bench_paths.py"]
    command += [f"--benchmark-json={tmp_path / 'bench.json'}", "-k", "toy-64-10- and float32 and (autocast or scipy)"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOY": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    bench = read_bench(tmp_path / "bench.json")
    assert bench["path"].tolist() == ["autocast", "autocast"]
    assert (bench["gigabytes_per_second"] < bench["copy_gigabytes_per_second"]).all()

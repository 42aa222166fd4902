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
    """All hazards, in one process."""
    folder = tmp_path_factory.mktemp("toy")
    scenarios = [
        {"name": name, "hazards": hazards, "arguments": SMALL, "limit": 1.0 if "hang" in name else 30.0}
        for name, (hazards, *_) in HAZARDS.items()
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/machine/device.py"), json.dumps(scenarios), str(folder)]
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
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

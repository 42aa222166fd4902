"""The command line as its user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import audit
from audit.base.usage import UsageError
from audit.machine.isolation import load

CPU = ("run", "--profile", "quick", "--device", "cpu", "--workers", "1")
ROOT = Path(__file__).parents[1]


def kl_audit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "audit", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("user")
    return folder / "reports" / "latest", kl_audit(*CPU, cwd=folder)


def test_a_run_writes_the_tables_and_names_interpreter_torch_and_devices(report) -> None:
    folder, answer = report
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0].startswith(sys.executable + ", torch ")
    assert "\x1b" not in answer.stdout
    names = {"errors.csv", "summary.csv", "thread.csv", "findings.csv", "environment.json", "report.md", "report.html"}
    names |= {f"{plot}.svg" for plot in ("thread", "training", "closeness", "attribution")}
    names |= {
        "columns.csv",
        "elements.csv",
        "gradients.csv",
        "growth.csv",
        "growth.svg",
        "invariance.csv",
        "attribution.csv",
    }
    assert {f.name for f in folder.iterdir()} == names
    tables = sum(name.endswith(".csv") for name in names)
    assert f"written: reports/latest/report.html to read, and {tables} tables beside it" in answer.stdout.splitlines()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["schema_version"] == 1
    assert environment["command"] == f"python -m audit {' '.join(CPU)}"


def test_the_rows_have_unique_keys_and_devices_that_computed_them(report) -> None:
    errors = audit.read_errors(report[0])
    assert not errors.duplicated(["case", "row", "path", "reduction", "dtype", "device"]).any()
    assert set(errors["device"]) == {"cpu"}
    assert set(errors["dtype"]) == {"float16", "bfloat16", "float32", "float64"}
    digits = pd.read_csv(report[0] / "errors.csv", dtype=str, keep_default_na=False)["case"]
    assert digits.str.startswith("digits").any()


def test_drift_is_computed_minus_reference_of_the_same_row(report) -> None:
    from fractions import Fraction

    errors = audit.read_errors(report[0])
    sample = errors[errors["drift"].notna()].sample(500, random_state=1)
    for row in sample.itertuples():
        assert float(Fraction(row.computed) - Fraction(row.reference)) == row.drift


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--case", "nope"), "unknown case 'nope'"),
        (("run", "--path", "log_softmx"), "did you mean log_softmax"),
        (("run", "--dtype", "float8"), "there are float16, bfloat16, float32, float64"),
        (("run", "--device", "tpu"), "unknown device 'tpu'"),
        (("run", "--profile", "huge"), "is not one of quick, standard, full"),
        (("run", "--path-file", "none.py:f"), "a file that exists"),
        (("list", "colours"), "not one of cases, paths, devices"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    answer = kl_audit(*arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "reports").exists()


def test_a_kernel_of_ones_own_that_raises_is_a_finding_beside_log_softmax(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def my_kl(x, y):\n    raise RuntimeError('not today')\n")
    answer = kl_audit(*CPU, "--case", "two_classes", "--path-file", "mine.py:my_kl", cwd=tmp_path)
    assert answer.returncode == 1, answer.stderr
    assert "symptom = not_computed" in answer.stdout
    errors = audit.read_errors(tmp_path / "reports" / "latest")
    assert set(errors["path"]) == {"my_kl", "log_softmax"}
    mine = errors[errors["path"] == "my_kl"]
    assert set(mine["note"]) == {"RuntimeError: not today"}
    assert set(mine["result_class"]) == {"not_computed"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("import sys\nsys.exit(3)\n", "raised SystemExit: 3"),
        ("import nothing_of_the_kind\n", "raised ModuleNotFoundError"),
        ("def other(x, y):\n    return x\n", "has no function 'my_kl'; it has other"),
    ],
)
def test_a_kernels_file_that_does_not_give_the_function_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(lines)
    with pytest.raises(UsageError, match=message):
        load(f"{tmp_path / 'mine.py'}:my_kl")


def test_a_kernels_file_may_import_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "a_neighbour.py").write_text("FACTOR = 2\n")
    (tmp_path / "mine.py").write_text(
        "from a_neighbour import FACTOR\n\ndef my_kl(x, y):\n    return FACTOR * x.sum(-1)\n"
    )
    assert load(f"{tmp_path / 'mine.py'}:my_kl").__name__ == "my_kl"


def test_help_is_there_without_torch(tmp_path: Path) -> None:
    assert "Measure every path" in kl_audit("run", "--help", cwd=tmp_path).stdout


def test_run_in_python_takes_filters_and_callables_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def always_zero(input, target):
        return input.sum(-1) * 0

    errors = audit.run(profile="quick", cases="random_64x81", paths=[always_zero], dtypes="float32", devices="cpu")
    assert set(errors["path"]) == {"always_zero", "log_softmax"}
    assert errors.loc[errors["path"] == "always_zero", "false_zero"].all()
    assert not list(tmp_path.iterdir())


def test_an_isolated_kernel_that_ends_its_process_is_a_finding_of_a_whole_report(tmp_path: Path) -> None:
    lines = "import os\n\ndef mine(x, y):\n    return os._exit(7) if x.shape[1] == 81 else (x - x).sum(-1)\n"
    (tmp_path / "mine.py").write_text(lines)
    options = ("--case", "two_classes", "--case", "random_64x81", "--dtype", "float32")
    ran = kl_audit(*CPU, *options, "--path-file", "mine.py:mine", "--isolate", "--out", "report", cwd=tmp_path)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    errors = audit.read_errors(tmp_path / "report" / "errors.csv").query("path == 'mine'")
    notes = errors.groupby("case")["note"].unique().map(list)
    assert notes.to_dict() == {"random_64x81": ["ended its process with status 7"], "two_classes": [""]}


def test_an_isolated_kernel_that_is_sound_leaves_no_word_on_standard_error(tmp_path: Path) -> None:
    body = "(y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum(-1)"
    (tmp_path / "mine.py").write_text(f"def mine(x, y):\n    return {body}\n")
    options = ("--case", "two_classes", "--dtype", "float32")
    ran = kl_audit(*CPU, *options, "--path-file", "mine.py:mine", "--isolate", "--out", "report", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_logits_saved_as_a_model_gives_them_are_audited_and_those_without_numbers_refused(tmp_path: Path) -> None:
    logits = torch.randn(4, 5).requires_grad_()
    torch.save({"input": logits, "target": logits * 2}, tmp_path / "model.pt")
    torch.save({"input": torch.empty(4, 5, device="meta"), "target": torch.randn(4, 5)}, tmp_path / "meta.pt")
    run = ("run", "--device", "cpu", "--workers", "1", "--path", "log_softmax", "--out", "report", "--logits")
    ran = kl_audit(*run, "model.pt", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    refused = kl_audit(*run, "meta.pt", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "kl-audit: meta.pt: input is a meta tensor, which holds no numbers\n"


def test_isolation_without_a_kernel_is_refused(tmp_path: Path) -> None:
    ran = kl_audit("run", "--isolate", cwd=tmp_path)
    assert ran.returncode == 2 and "--path-file" in ran.stderr

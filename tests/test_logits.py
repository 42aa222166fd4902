"""A user's own logits: --logits FILE."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import audit
from audit import pipeline


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audit", "run", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 50, generator=generator)
    return x, x + 0.01 * torch.randn(7, 50, generator=generator)


def test_the_main_paths_run_per_row_in_the_files_dtype(pair, tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez(file, input=pair[0], target=pair[1])
    answer = run("--logits", file, "--out", tmp_path / "report")
    assert answer.returncode == 0, answer.stderr
    errors = audit.read_errors(tmp_path / "report")
    assert set(errors["case"]) == {"mine"} and set(errors["dtype"]) == {"float32"}
    assert set(errors["path"]) == set(pipeline.MAIN)
    for _, rows in errors.groupby("path"):
        assert list(rows["row"]) == list(range(7))
        assert [f"{float(v):.12e}" for v in rows["reference"]] == [f"{float(v):.12e}" for v in audit.exact_kl(*pair)]


def test_blocks_of_rows_give_what_one_block_gives(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.pt"
    torch.save(dict(zip(("input", "target"), pair, strict=True)), file)
    whole = pipeline.execute(pipeline.plan_file(file, devices="cpu")).tables["errors"]
    monkeypatch.setattr(pipeline, "ELEMENTS_AT_ONCE", 150)
    blocks = pipeline.execute(pipeline.plan_file(file, devices="cpu")).tables["errors"]
    key = ["path", "row"]
    one, other = (t.sort_values(key, ignore_index=True) for t in (whole, blocks))
    exact = ["row", "rows", "path", "input_digest", "reference", "bound"]
    assert one[exact].equals(other[exact])


def test_probabilities_may_be_the_target(pair, tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez(file, input=pair[0], target=torch.softmax(pair[1], -1))
    answer = run("--logits", file, "--target-kind", "probs", "--out", tmp_path / "report")
    assert answer.returncode == 0, answer.stderr
    assert set(audit.read_errors(tmp_path / "report")["target_kind"]) == {"probs"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--logits", "nowhere.npz"], "no such file"),
        (["--logits", "flat.npz"], "expected shape (rows, classes), got (3,)"),
        (["--logits", "good.npz", "--target-kind", "odds"], "'odds' is not one of"),
        (["--logits", "good.npz", "--input-kind", "probs"], "row 0, column 0 is -"),
        (["--logits", "text.txt"], "expected one of .npz"),
    ],
)
def test_what_cannot_be_audited_is_refused_and_nothing_written(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    np.savez(tmp_path / "flat.npz", input=np.zeros(3), target=np.zeros(3))
    np.savez(tmp_path / "good.npz", input=pair[0], target=pair[1])
    (tmp_path / "text.txt").write_text("1 2 3")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments, "--out", tmp_path / "report")
    assert answer.returncode == 2, answer.stdout
    assert complaint in " ".join(answer.stderr.split()) and "Traceback" not in answer.stderr
    assert not (tmp_path / "report").exists()

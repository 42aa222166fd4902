"""A user's own logits: --logits FILE."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import audit
from audit.base.formats import FORMATS
from audit.base.usage import UsageError
from audit.cases.files import Pair, read_pair
from audit.looks import stream
from audit.machine.plan import MAIN, plan_file
from audit.pipeline import loop as pipeline


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
    assert set(errors["path"]) == set(MAIN)
    for _, rows in errors.groupby("path"):
        assert list(rows["row"]) == list(range(7))
        assert [f"{float(v):.12e}" for v in rows["reference"]] == [f"{float(v):.12e}" for v in audit.exact_kl(*pair)]


def test_blocks_of_rows_give_what_one_block_gives(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.pt"
    torch.save(dict(zip(("input", "target"), pair, strict=True)), file)
    whole = pipeline.execute(plan_file(file, devices="cpu")).tables["errors"]
    monkeypatch.setattr(stream, "ELEMENTS_AT_ONCE", 150)
    blocks = pipeline.execute(plan_file(file, devices="cpu")).tables["errors"]
    key = ["path", "row"]
    one, other = (t.sort_values(key, ignore_index=True) for t in (whole, blocks))
    exact = ["row", "rows", "path", "input_digest", "reference", "bound"]
    assert one[exact].equals(other[exact])


FORM = {"logits": lambda t: t, "log_probs": lambda t: t.log_softmax(-1), "probs": lambda t: t.softmax(-1)}


@pytest.mark.parametrize("target_kind", FORM)
@pytest.mark.parametrize("input_kind", FORM)
def test_each_kind_is_taken_as_it_is(input_kind: str, target_kind: str, pair, tmp_path: Path) -> None:
    """Against exact_kl of the kinds: probabilities rounded to bfloat16 sum to anything but 1."""
    x, y = (FORM[k](t).bfloat16() for k, t in zip((input_kind, target_kind), pair, strict=True))
    file = tmp_path / "mine.pt"
    torch.save({"input": x, "target": y}, file)
    errors = pipeline.execute(plan_file(file, input_kind, target_kind, devices="cpu")).tables["errors"]
    exact = audit.exact_kl(x, y, input_kind=input_kind, target_kind=target_kind)
    assert set(errors["target_kind"]) == {target_kind}
    for path, rows in errors.groupby("path"):
        assert [float(v) for v in rows["reference"]] == [float(v) for v in exact], path
        assert rows["within_bound"].all(), path


def test_a_kernel_of_ones_own_gets_what_the_file_holds_and_is_judged_by_it(pair, tmp_path: Path) -> None:
    def mine(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (target * (target.log() - input)).sum(-1)

    def backwards(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (input.exp() * (input - target.log())).sum(-1)

    file = tmp_path / "mine.pt"
    torch.save({"input": pair[0].log_softmax(-1), "target": (5 * pair[1]).softmax(-1)}, file)
    run = pipeline.execute(plan_file(file, "log_probs", "probs", [mine, backwards], devices="cpu"))
    assert set(run.tables["errors"]["path"]) == {"mine", "backwards", "kl_div"}
    assert set(run.new_findings["path"]) == {"backwards"}


def test_kinds_that_no_path_asked_for_takes_are_refused(pair, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", input=pair[0].softmax(-1), target=pair[1])
    with pytest.raises(UsageError, match="none of log_target takes any such probs against logits"):
        plan_file(tmp_path / "mine.npz", "probs", "logits", ["log_target"])


def files(folder: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Path]:
    """The pair in every way a file may hold it."""
    named = dict(zip(("input", "target"), pair, strict=True))
    arrays = {name: tensor.numpy() for name, tensor in named.items()}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "compressed.npz", **arrays)
    np.savez(folder / "fortran.npz", **{n: np.asfortranarray(a) for n, a in arrays.items()})
    np.savez(folder / "foreign.npz", **{n: a.astype(">f4") for n, a in arrays.items()}, epoch=np.array(3))
    torch.save(named | {"epoch": 3}, folder / "mapped.pt")
    torch.save(named, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({n: t.repeat_interleave(2, 1)[:, ::2] for n, t in named.items()}, folder / "strided.pth")
    if find_spec("safetensors"):
        from safetensors.torch import save_file

        save_file(named, folder / "safe.safetensors")
    return {f.stem: f for f in folder.iterdir()}


def test_every_format_gives_any_rows_exactly(pair, tmp_path: Path) -> None:
    for name, file in files(tmp_path, pair).items():
        for rows in (slice(0, 3), slice(3, 6), slice(6, 9), slice(1, 2)):
            input, target = Pair.open(file, "logits", "logits").case(rows).make(FORMATS["float32"])
            assert (input == pair[0][rows].double().numpy()).all(), name
            assert (target == pair[1][rows].double().numpy()).all(), name
        assert all(torch.equal(a, b) for a, b in zip(read_pair(file), pair, strict=True)), name


def test_a_wrong_number_is_named_by_the_files_own_row(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair[1][5, 3] = float("nan")
    file = tmp_path / "mine.pt"
    torch.save(dict(zip(("input", "target"), pair, strict=True)), file)
    monkeypatch.setattr(stream, "ELEMENTS_AT_ONCE", 100)
    with pytest.raises(UsageError, match=r"mine.pt: target: row 5, column 3 is nan; logits must be"):
        pipeline.execute(plan_file(file, devices="cpu"))


@pytest.mark.parametrize("name", ["plain", "compressed", "mapped", "safe"])
def test_a_file_that_is_cut_off_is_refused(name: str, pair, tmp_path: Path) -> None:
    file = files(tmp_path, pair).get(name)
    if file is None:
        pytest.skip("safetensors is not installed")
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UsageError, match=f"{file.name}: cannot be read as"):
        plan_file(file)


MEMORY = """
import sys
from pathlib import Path
from audit.cases.files import Pair
from audit.base.formats import FORMATS

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

pairs = [Pair.open(Path(f), "logits", "logits") for f in sys.argv[1:]]
before, most = resident(), 0
for pair in pairs:
    for row in range(0, pair.input.shape[0], 4):
        pair.case(slice(row, row + 4)).make(FORMATS["float32"])
        most = max(most, resident())
print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_file_takes_no_more_memory_than_a_block(tmp_path: Path) -> None:
    wide = {name: torch.randn(2, 200_000).half().repeat(48, 1) for name in ("input", "target")}
    torch.save(wide, tmp_path / "wide.pt")
    np.savez(tmp_path / "wide.npz", **{name: tensor.numpy() for name, tensor in wide.items()})
    made = [tmp_path / "wide.pt", tmp_path / "wide.npz"]
    if find_spec("safetensors"):
        from safetensors.torch import save_file

        save_file(wide, tmp_path / "wide.safetensors")
        made.append(tmp_path / "wide.safetensors")
    answer = subprocess.run([sys.executable, "-c", MEMORY, *map(str, made)], capture_output=True, text=True, check=True)
    # 77 MB a file; a block of four rows is 16 MB in all, with its copies in binary64.
    assert int(answer.stdout) < 50


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
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments, "--out", tmp_path / "report")
    assert answer.returncode == 2, answer.stdout
    assert complaint in " ".join(answer.stderr.split()) and "Traceback" not in answer.stderr
    assert not (tmp_path / "report").exists()

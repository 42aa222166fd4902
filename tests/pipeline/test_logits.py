"""A user's own logits: --logits FILE."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
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
    command = [sys.executable, "-m", "audit", "run", "--device", "cpu", "--workers", "1", *map(str, arguments)]
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
    monkeypatch.setattr(stream, "NUMBERS", 150)
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
    run = pipeline.execute(plan_file(file, "log_probs", "probs", paths=[mine, backwards], devices="cpu"))
    assert set(run.tables["errors"]["path"]) == {"mine", "backwards", "kl_div"}
    assert set(run.new_findings["path"]) == {"backwards"}


def test_kinds_that_no_path_asked_for_takes_are_refused(pair, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", input=pair[0].softmax(-1), target=pair[1])
    with pytest.raises(UsageError, match="none of log_target takes any such probs against logits"):
        plan_file(tmp_path / "mine.npz", "probs", "logits", paths=["log_target"])


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
        assert all(torch.equal(a, b) for a, b in zip(read_pair(file), pair, strict=False)), name


def test_a_wrong_number_is_named_by_the_files_own_row(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (pair[0], pair[1].softmax(-1))
    pair[1][5, 3] = -0.5
    file = tmp_path / "mine.pt"
    torch.save(dict(zip(("input", "target"), pair, strict=True)), file)
    monkeypatch.setattr(stream, "NUMBERS", 100)
    with pytest.raises(UsageError, match=r"mine.pt: target: row 5, column 3 is -0.5; probs must be"):
        pipeline.execute(plan_file(file, target_kind="probs", devices="cpu"))


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
    for row in range(0, len(pair.mask), 4):
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
        (["--logits", "flat.npz"], "got input (float64, a number)"),
        (["--logits", "good.npz", "--target-kind", "odds"], "'odds' is not one of"),
        (["--logits", "good.npz", "--input-kind", "probs"], "input: row 0, column "),
        (["--logits", "text.txt"], "expected one of .npz"),
    ],
)
def test_what_cannot_be_audited_is_refused_and_nothing_written(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    np.savez(tmp_path / "flat.npz", input=np.zeros(()), target=np.zeros(()))
    np.savez(tmp_path / "good.npz", input=pair[0], target=pair[1])
    (tmp_path / "text.txt").write_text("1 2 3")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments, "--out", tmp_path / "report")
    assert answer.returncode == 2, answer.stdout
    assert complaint in " ".join(answer.stderr.split()) and "Traceback" not in answer.stderr
    assert not (tmp_path / "report").exists()


def judged(*given: object, **options: object) -> pd.DataFrame:
    return pipeline.execute(plan_file(*given, paths=["log_softmax"], devices="cpu", **options)).tables["errors"]


def same_as_exact(errors: pd.DataFrame, input: torch.Tensor, target: torch.Tensor) -> bool:
    exact = audit.exact_kl(input.double(), target.double())
    return [float(v) for v in errors["reference"]] == [float(v) for v in exact]


def test_a_row_that_is_no_distribution_says_so_and_the_others_are_judged(pair, tmp_path: Path) -> None:
    x, y = pair
    y[5, 3], x[1, 0], y[2] = float("nan"), float("inf"), float("-inf")
    torch.save({"input": x, "target": y}, tmp_path / "mine.pt")
    errors = judged(tmp_path / "mine.pt")
    lost = errors["row"].isin([1, 2, 5])
    assert list(errors["reference"] == "nan") == list(lost) == list(errors["note"] != "")
    assert errors["within_bound"].all()  # torch gives NaN there, as it should
    assert same_as_exact(errors[~lost], x[[0, 3, 4, 6]], y[[0, 3, 4, 6]])


def test_a_kernel_that_gives_a_number_for_a_nan_is_found(pair, tmp_path: Path) -> None:
    def masking(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_p, log_q = target.log_softmax(-1), input.log_softmax(-1)
        return torch.nan_to_num(log_p.exp() * (log_p - log_q)).sum(-1)

    pair[1][5, 3] = float("nan")
    torch.save(dict(zip(("input", "target"), pair, strict=True)), tmp_path / "mine.pt")
    audited = pipeline.execute(plan_file(tmp_path / "mine.pt", paths=[masking], devices="cpu"))
    assert audited.new_findings["row"].tolist() == [5]


@pytest.mark.parametrize("shape", [(14, 50), (2, 7, 50), (2, 4, 5, 10), (700,)])
@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_the_last_dimension_is_the_classes_and_a_mask_says_which_rows(
    shape: tuple[int, ...], suffix: str, tmp_path: Path
) -> None:
    tensors = dict(zip(("input", "target"), torch.randn(2, *shape), strict=True))
    mask = torch.rand(shape[:-1]) < 0.6 if len(shape) > 1 else torch.tensor(True)
    mask.view(-1)[0] = True
    save(tensors | {"mask": mask}, tmp_path / f"mine{suffix}")
    errors = judged(tmp_path / f"mine{suffix}")
    rows = {name: tensor.reshape(-1, shape[-1])[mask.reshape(-1)] for name, tensor in tensors.items()}
    assert list(errors["row"]) == mask.reshape(-1).nonzero().flatten().tolist()
    assert same_as_exact(errors, **rows)


@pytest.mark.parametrize("kinds", [("logits", "logits"), ("log_probs", "probs")])
def test_what_another_dtype_rounds_away_is_the_input_error(kinds: tuple[str, str], tmp_path: Path) -> None:
    x, y = torch.randn(2, 200, 12)
    x[5], y[5] = x[5].bfloat16().float(), y[5].bfloat16().float()  # what bfloat16 holds
    if kinds[0] != "logits":
        x, y = x.log_softmax(-1), y.softmax(-1)
    torch.save({"input": x, "target": y}, tmp_path / "mine.pt")
    options = {"devices": "cpu", "dtypes": ["bfloat16", "float32", "float64"]}
    errors = pipeline.execute(plan_file(tmp_path / "mine.pt", *kinds, **options)).tables["errors"]
    by_dtype = dict(list(errors[errors["path"] == errors["path"].iloc[0]].groupby("dtype")["input_error"]))
    assert by_dtype["float32"].isna().all() and (by_dtype["float64"] == 0).all()
    exact = [audit.exact_kl(*sides, input_kind=kinds[0], target_kind=kinds[1]) for sides in
             ((x.bfloat16(), y.bfloat16()), (x, y))]  # fmt: skip
    expected = [float(rounded - before) for rounded, before in zip(*exact, strict=True)]
    assert by_dtype["bfloat16"].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-10)
    assert (by_dtype["bfloat16"] != 0).any() and (kinds[0] != "logits" or by_dtype["bfloat16"].iloc[5] == 0)


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """In the format of the file's name; safetensors as its README has it."""
    if file.suffix == ".npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif file.suffix == ".npy":
        np.save(file, *(tensor.numpy() for tensor in tensors.values()))
    elif file.suffix == ".pt":
        torch.save(tensors, file)
    else:
        names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.bool: "BOOL"}
        header, data = {"__metadata__": {"by": "a test"}}, b""
        for name, tensor in tensors.items():
            part = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            offsets = [len(data), len(data) + len(part)]
            header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            data += part
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_shards_are_one_tensor_in_the_order_of_their_names(
    suffix: str, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = pair
    for name, rows in {"b": slice(3, 7), "a": slice(0, 3)}.items():
        save({"input": x[rows], "target": y[rows]}, tmp_path / f"{name}{suffix}")
    (tmp_path / "notes.txt").write_text("no tensors")
    monkeypatch.setattr(stream, "NUMBERS", 100)  # blocks that span two shards
    for given in (tmp_path, tmp_path / f"*{suffix}"):
        errors = judged(given)
        assert list(errors["row"]) == list(range(7)) and same_as_exact(errors, x, y)


def test_a_target_may_lie_apart_under_any_name_and_in_other_shards(pair, tmp_path: Path) -> None:
    x, y = pair
    (tmp_path / "teacher").mkdir()
    np.save(tmp_path / "student.npy", x.numpy())
    save({"logits": y[:2]}, tmp_path / "teacher" / "0.safetensors")
    torch.save(y[2:], tmp_path / "teacher" / "1.pt")
    errors = judged(tmp_path / "student.npy", target=tmp_path / "teacher")
    assert set(errors["case"]) == {"student"} and same_as_exact(errors, x, y)


@pytest.mark.parametrize(
    ("dtypes", "wider"),
    [(("float32", "bfloat16"), "float32"), (("bfloat16", "float16"), "float32"), (("float64", "float16"), "float64")],
)
def test_two_dtypes_are_taken_to_the_wider_exactly(dtypes: tuple[str, str], wider: str, pair, tmp_path: Path) -> None:
    x, y = (tensor.to(getattr(torch, dtype)) for tensor, dtype in zip(pair, dtypes, strict=True))
    torch.save({"input": x, "target": y}, tmp_path / "mine.pt")
    plan = plan_file(tmp_path / "mine.pt", devices="cpu")
    assert plan.dtypes == [wider] and any(f"taken to {wider}, exactly" in note for note in plan.file.notes)
    assert same_as_exact(judged(tmp_path / "mine.pt"), x, y)


def test_the_first_classes_of_both_sides(pair, tmp_path: Path) -> None:
    x, y = pair
    torch.save({"input": x, "target": torch.cat([y, torch.zeros(7, 14)], 1)}, tmp_path / "mine.pt")
    with pytest.raises(UsageError, match="--classes 50 takes the first 50 classes of both"):
        plan_file(tmp_path / "mine.pt")
    assert same_as_exact(judged(tmp_path / "mine.pt", classes=40), x[:, :40], y[:, :40])


@pytest.mark.parametrize(("form", "seen"), [("probs", "sum to 1"), ("log_probs", "are logarithms of numbers")])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("classes", [10, 5000])
def test_probabilities_given_as_logits_are_recognised(form: str, seen: str, dtype: str, classes: int, tmp_path) -> None:
    logits = 3 * torch.randn(40, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = FORM[form](logits).to(getattr(torch, dtype))
    torch.save({"input": given, "target": logits.to(given)}, tmp_path / "mine.pt")
    (note,) = Pair.open(tmp_path / "mine.pt").notes
    assert f"the input's rows {seen}" in note and f"--input-kind {form}" in note
    assert not Pair.open(tmp_path / "mine.pt", form).notes


TENSOR = torch.zeros(3, 4)
REFUSED = {
    "names": ({"student": TENSOR, "teacher": TENSOR}, {}, "--input-name student --target-name teacher would read"),
    "alone": ({"input": TENSOR}, {}, r"found input \(float32, 3 x 4\); run --target-logits FILE is for a target"),
    "integers": ({"input": TENSOR, "target": TENSOR.long()}, {}, r"got target \(int64, 3 x 4\)"),
    "rows": ({"input": TENSOR, "target": TENSOR[:2]}, {}, "they part at row 2"),
    "mask": ({"input": TENSOR, "target": TENSOR, "mask": torch.ones(4, dtype=torch.bool)}, {}, "a value a row, got"),
    "mask_name": ({"input": TENSOR, "target": TENSOR}, {"names": ("input", "target", "keep")}, "a mask named keep"),
    "nothing": ({"input": TENSOR, "target": TENSOR, "mask": torch.zeros(3, dtype=torch.bool)}, {}, "no row is left"),
    "classes": ({"input": TENSOR, "target": TENSOR}, {"classes": 5}, "--classes 5: expected 1 to 4"),
    "number": ({"input": torch.tensor(1.0), "target": torch.tensor(1.0)}, {}, r"got input \(float32, a number\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_say_what_was_found_and_the_option_that_would_read_it(case: str, tmp_path: Path) -> None:
    tensors, options, complaint = REFUSED[case]
    torch.save(tensors, tmp_path / "mine.pt")
    with pytest.raises(UsageError, match=complaint):
        plan_file(tmp_path / "mine.pt", **options)


@pytest.mark.parametrize(("names", "wrong"), [(("nosuch", "target"), "nosuch"), (("input", "nosuch"), "nosuch")])
def test_a_name_that_is_asked_for_is_not_replaced_by_the_only_tensor(names, wrong: str, tmp_path: Path) -> None:
    """Where the two sides lie apart, a file's only tensor of any name is taken, but for one that was named."""
    torch.save({"a": TENSOR}, tmp_path / "a.pt")
    torch.save({"b": TENSOR}, tmp_path / "b.pt")
    assert len(Pair.open(tmp_path / "a.pt", target=tmp_path / "b.pt").mask) == 3
    with pytest.raises(UsageError, match=f"expected a tensor named {wrong}"):
        Pair.open(tmp_path / "a.pt", target=tmp_path / "b.pt", names=(*names, "mask"))


@pytest.mark.parametrize("compress", [np.savez_compressed, None])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(compress, tmp_path: Path) -> None:
    """By what it declares: a tensor of .pt may repeat one number without end."""
    file = tmp_path / ("bomb.npz" if compress else "bomb.pt")
    if compress:
        zeros = np.zeros((200, 100_000), np.float32)
        compress(file, input=zeros, target=zeros)
    else:
        endless = torch.zeros(1, 1).expand(10**6, 10**6)
        torch.save({"input": endless, "target": endless}, file)
    with pytest.raises(UsageError, match=r"that unpack to .* --unpacked-limit MB, now 100"):
        Pair.open(file, limit=100)
    if compress:
        assert len(Pair.open(file, limit=200).mask) == 200


def test_a_shard_that_is_cut_off_is_named_with_tensor_and_row(pair, tmp_path: Path) -> None:
    x, y = pair
    np.save(tmp_path / "a.npy", x.numpy())
    np.save(tmp_path / "b.npy", y.numpy())
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-210])
    with pytest.raises(UsageError, match=r"a.npy: a: row 0 on cannot be read: the file ends in row 5"):
        judged(tmp_path / "a.npy", target=tmp_path / "b.npy")

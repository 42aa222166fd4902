"""A long file: statistics of all its rows, the rows that are shown, and a run that goes on where it was cut off."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import audit
from audit.base.usage import UsageError
from audit.looks import stream
from audit.machine.plan import plan_file
from audit.pipeline import loop
from audit.publish.answer import answer
from audit.publish.folder import Kept


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(4)
    y = 3 * torch.randn(400, 20, generator=generator)
    x = y + 0.1 * torch.randn(400, 20, generator=generator)
    y[7, 3] = float("nan")
    torch.save({"input": x, "target": y}, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def tables(file: Path, **options: object) -> dict[str, pd.DataFrame]:
    return loop.execute(plan_file(file, devices="cpu"), references=file.parent, **options).tables


def test_statistics_are_those_of_all_exact_values_and_of_every_path(file: Path) -> None:
    made = tables(file)
    held = torch.load(file)
    x, y = (held[name][[row for row in range(400) if row != 7]].double() for name in ("input", "target"))
    statistics = made["statistics"].set_index(["path", "direction"])
    for direction, pair in {"target_input": (x, y), "input_target": (y, x)}.items():
        exact = np.array([float(v) for v in audit.exact_kl(*pair)])
        row = statistics.loc["exact", direction]
        assert (row["n"], row["non_finite"]) == (400, 1)
        assert row["mean"] == pytest.approx(exact.mean(), rel=1e-9)
        assert row["standard_error"] == pytest.approx(exact.std(ddof=1) / 399**0.5, rel=1e-9)
        assert row["p99_9"] == pytest.approx(np.percentile(exact, 99.9), rel=1e-9)
        assert (row["minimum"], row["maximum"]) == pytest.approx((exact.min(), exact.max()), rel=1e-9)
    same = (held["input"].argmax(-1) == held["target"].argmax(-1)).double().mean().item()
    assert statistics["same_top_class"].eq(same).all()
    errors = made["errors"].query("path == 'log_softmax'")
    row = statistics.loc["log_softmax", "target_input"]
    assert row["mean"] == pytest.approx(errors["computed"].mean(), rel=1e-12)
    assert row["error_p99"] == np.percentile(errors["abs_error"].dropna(), 99)


def test_of_many_results_those_are_shown_that_are_not_clear_and_the_worst(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = tables(file)
    monkeypatch.setattr(stream, "MOST", 200)
    monkeypatch.setattr(stream, "WORST", 5)
    some = tables(file)
    shown, errors = some["errors"], every["errors"]
    assert len(shown) < 100 < len(errors)
    assert some["summary"].equals(every["summary"]) and some["statistics"].equals(every["statistics"])
    said = [told for question, told in answer(some, {}).questions if "Which way" in question]
    assert said and all("all rows that errors.csv shows" in told for told in said)
    key = ["path", "row"]
    kept = set(shown[key].itertuples(index=False, name=None))
    worst = errors.sort_values("scaled_error", ascending=False).groupby("path").head(5)
    for rows in (worst, errors[errors["result_class"] != "finite"]):
        assert set(rows[key].itertuples(index=False, name=None)) <= kept


def test_two_dtypes_of_a_chunk_reach_the_spool_together(file: Path, tmp_path: Path) -> None:
    spool = Kept(tmp_path / "report", "")
    plan = plan_file(file, dtypes=["float32", "bfloat16"], devices="cpu")
    errors = loop.execute(plan, references=tmp_path, spool=spool).tables["errors"]
    assert errors.groupby("dtype").size().to_dict() == {"float32": 1600, "bfloat16": 1600}


def test_a_run_that_was_cut_off_goes_on_to_the_same_tables(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMBERS", 20 * 30)
    monkeypatch.setattr(stream, "RESULTS", 200)
    whole = tables(file)
    out, put = tmp_path / "report", Kept.put
    seen: list[int] = []

    def killed(self: Kept, part: pd.DataFrame, reached: int) -> None:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(reached)
        put(self, part, reached)

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            tables(file, spool=Kept(out, "the run"))
    spool = Kept(out, "the run", resume=True)
    assert spool.reached == seen[-1] > 0
    resumed = tables(file, spool=spool)
    assert all(whole[name].equals(resumed[name]) for name in ("errors", "summary", "statistics", "findings"))
    spool.close()
    assert Kept(out, "the run", resume=True).reached == 0


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Kept(tmp_path / "report", "")
    spool.put(pd.DataFrame({"a": [1]}), 7)

    def full(self: pd.DataFrame, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_pickle", full)
    with pytest.raises(UsageError, match="No space left on device; the rows up to 7 are kept, and --resume"):
        spool.put(pd.DataFrame({"a": [2]}), 9)
    assert [f.name for f in spool.folder.iterdir()] == ["000000000000007.pickle"]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """Of 20 kills, by each signal in turn, some fall into the reading, the judging and the writing."""
    y = 2 * torch.randn(30_000, 300)
    torch.save({"input": y + 0.1 * torch.randn(30_000, 300), "target": y}, tmp_path / "mine.pt")
    command = [sys.executable, "-m", "audit", "run", "--device", "cpu", "--logits", str(tmp_path / "mine.pt")]

    def run(out: str, *more: str) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*command, "--out", str(tmp_path / out), *more], **quiet)

    begin = time.monotonic()
    assert run("whole/report").wait() == 0
    takes = time.monotonic() - begin
    for kill in range(20):
        process = run("cut/report", "--resume")
        time.sleep(random.uniform(0.1, 0.9) * takes)
        process.send_signal([signal.SIGKILL, signal.SIGTERM, signal.SIGINT][kill % 3])
        process.wait()
    assert run("cut/report", "--resume").wait() == 0
    for name in ("errors", "summary", "statistics", "findings"):
        one, other = (tmp_path / out / "report" / f"{name}.csv" for out in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), name
    assert ".partial" not in os.listdir(tmp_path / "cut")


def test_another_executor_gives_the_same_rows_and_names_those_that_kill_its_worker(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMBERS", 20 * 30)
    monkeypatch.setattr(stream, "RESULTS", 200)
    here = tables(file)
    with ThreadPoolExecutor(1) as executor:
        there = tables(file, executor=executor)
        assert all(here[name].equals(there[name]) for name in ("errors", "summary", "statistics"))
        judge = stream.judge_rows

        def killed(plan: object, threads: int, span: int, start: int, failed: str = "") -> pd.DataFrame:
            if start == 90 and not failed:
                raise RuntimeError("KilledWorker")
            return judge(plan, threads, span, start, failed)

        monkeypatch.setattr(stream, "judge_rows", killed)
        errors = tables(file, executor=executor)["errors"]
    lost = errors["row"].between(90, 119)
    assert errors[lost]["note"].eq("not run: rows 90 to 119: RuntimeError: KilledWorker").all()
    assert errors[~lost].reset_index(drop=True).equals(here["errors"][~lost].reset_index(drop=True))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_dask_cluster_gives_the_same_rows(workers: int, file: Path) -> None:
    pytest.importorskip("distributed")
    from audit.base.workers import dask_executor

    here = tables(file)
    with dask_executor("local", workers) as executor:
        there = tables(file, executor=executor)
    assert all(here[name].equals(there[name]) for name in ("errors", "summary", "statistics"))


def test_sampled_tokens_have_the_statistics_of_each_path_and_of_no_divergence(tmp_path: Path) -> None:
    given = -torch.rand(2, 30)
    torch.save({"input": given, "target": given + 0.1 * torch.randn(2, 30)}, tmp_path / "tokens.pt")
    kinds = ("token_log_probs", "token_log_probs")
    made = loop.execute(plan_file(tmp_path / "tokens.pt", *kinds, devices="cpu"), references=tmp_path).tables
    paths = set(made["errors"]["path"])
    assert set(made["statistics"]["path"]) == paths | {f"exact {path}" for path in paths}
    assert len(made["errors"]) == 60 * len(paths)
    assert not [question for question, _ in answer(made, {}).questions if "models" in question]

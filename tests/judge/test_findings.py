"""Findings: what a gate objects to, once, with the input that shows it; and what is understood."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, log_softmax
from torch.nn import functional as F

import audit
from audit.explain.reproducer import Shrinker
from audit.judge.findings import COMMITTED, Acknowledgement, find, read_acknowledgements, stanzas
from audit.machine.plan import plan
from audit.paths import own_path
from audit.pipeline.loop import Audit, execute
from audit.publish.tables import read_table

RUN = [sys.executable, "-m", "audit", "run", "--device", "cpu", "--workers", "1"]
CASES = ["identical_n1000", "random_*", "near_*", "zeros_in_target", "one_hot"]


def tail_dropped(input: Tensor, target: Tensor) -> Tensor:
    """KL that leaves out the last class."""
    terms = torch.softmax(target, -1) * (torch.log_softmax(target, -1) - torch.log_softmax(input, -1))
    return terms[:, :-1].sum(-1)


def floats(text: str) -> Iterator[float]:
    for run in text.split():
        value, _, count = run.partition("*")
        yield from [float.fromhex(value)] * int(count or 1)


def run(function, **filters) -> Audit:
    return execute(plan("quick", filters.pop("cases", CASES), [function], devices="cpu", **filters))


@pytest.fixture(scope="module")
def found() -> Audit:
    return run(tail_dropped, dtypes="float64")


def test_a_defect_is_one_finding_with_its_worst_small_example(found: Audit) -> None:
    findings = found.new_findings
    # Its order of the classes matters too, by more than rounding explains.
    assert set(findings["symptom"]) == {"beyond_bound", "changes"} and len(findings) == 2
    finding = findings.iloc[0]
    assert (finding["path"], finding["symptom"]) == ("tail_dropped", "beyond_bound")
    rows = found.tables["errors"].query("path == 'tail_dropped' and within_bound == False")
    assert finding["results"] == len(rows)
    assert finding["worst_ratio"] == (rows["abs_error"] / rows["bound"]).max()


def test_the_example_is_shrunk_and_its_script_shows_the_defect(found: Audit, run_script) -> None:
    finding = found.new_findings.iloc[0]
    assert finding["classes"] == 2
    computed, exact = run_script(finding["script"])
    row = [torch.tensor([list(floats(finding[side]))], dtype=torch.float64) for side in ("input", "target")]
    assert computed == tail_dropped(*row).item()
    assert exact == float(audit.exact_kl(*row)[0])
    assert abs(computed - exact) > 1e-12


def test_the_path_shown_for_comparison_is_not_judged(found: Audit) -> None:
    assert set(found.tables["findings"]["path"]) == {"tail_dropped"}
    assert "log_softmax" in set(found.tables["errors"]["path"])


def test_a_printed_stanza_acknowledges_the_finding_once_it_has_a_reason(found: Audit, tmp_path: Path) -> None:
    file = tmp_path / "known.ini"
    file.write_text(stanzas(found.new_findings).replace("reason = …", "reason = it is mine"))
    again = execute(plan("quick", CASES, [tail_dropped], "float64", "cpu"), acknowledgements=[file])
    assert again.new_findings.empty
    findings = again.tables["findings"].query("status != 'shared'")
    assert findings["acknowledged_by"].str.startswith("tail_dropped").all()
    assert again.stale == []


def test_an_acknowledgement_whose_scope_ran_without_a_finding_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "known.ini"
    file.write_text("[gone]\npath = log_softmax\ndtype = float64\nsymptom = beyond_bound\nreason = it was so once\n")
    healthy = execute(plan("quick", CASES, "log_softmax", "float64", "cpu"), acknowledgements=[file])
    assert healthy.stale == ["gone"]
    elsewhere = execute(plan("quick", CASES, "log_target", "float64", "cpu"), acknowledgements=[file])
    assert elsewhere.stale == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x]\npath = a\n", r"known\.ini: \[x\]: expected a path, and a reason"),
        ("[x]\npath = a\nreason = …\n", "a reason in the place of …"),
        ("[x]\npath = a\nreason = b\ncolour = red\n", r"known\.ini: \[x\]: colour is none of"),
        ("no stanza", "cannot be read"),
    ],
)
def test_a_file_that_is_none_of_acknowledgements_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "known.ini"
    file.write_text(text)
    with pytest.raises(audit.UsageError, match=complaint):
        read_acknowledgements(file)


def test_no_committed_acknowledgement_covers_a_path_of_the_users_own() -> None:
    def all_paths(stanza: Acknowledgement) -> bool:
        return any("*" in glob for glob in stanza.scope["path"])

    assert not [a.name for a in read_acknowledgements(COMMITTED) if all_paths(a)]


def test_the_process_fails_with_one_and_prints_the_stanza(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def twice(x, y):\n    return 2 * (y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum(-1)\n"
    )
    command = [*RUN, "--profile", "quick", "--case", "random_scale1"]
    command += ["--path-file", f"{tmp_path}/mine.py:twice", "--out", f"{tmp_path}/report"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1, answer.stderr
    assert "twice is not sound" in answer.stdout
    assert "[twice-beyond_bound]" in answer.stdout


LOSING = """
def losing(x, y):
    return (1 + 2**-12) * (y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum(-1)
"""


@pytest.mark.parametrize(("strict", "status"), [([], 0), (["--strict"], 1)])
def test_what_is_lossy_fails_only_where_that_is_asked(tmp_path: Path, strict: list[str], status: int) -> None:
    (tmp_path / "mine.py").write_text(LOSING)
    command = [*RUN, "--case", "scattered_n32000", *strict]
    command += ["--dtype", "float32", "--path-file", f"{tmp_path}/mine.py:losing", "--out", f"{tmp_path}/report"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == status, answer.stderr
    said = " ".join(answer.stdout.split())
    words = re.search(r"sound, but ([\d,]+) roundoffs off where ([\d,]+) are attainable", said)
    assert words is not None
    errors = audit.read_errors(tmp_path / "report").query("path == 'losing'")
    (finding,) = read_table(tmp_path / "report", "findings").to_dict("records")
    assert (finding["status"], finding["symptom"], finding["results"]) == ("lossy", "lossy", errors["lossy"].sum())
    worst = errors.loc[(errors["abs_error"] / errors["attainable"]).idxmax()]
    assert worst["within_bound"] and worst["attainable"] < worst["abs_error"] <= worst["bound"]
    assert float(words[1].replace(",", "")) == round(worst["scaled_error"])
    unit = worst["abs_error"] / worst["scaled_error"]
    assert float(words[2].replace(",", "")) == round(worst["attainable"] / unit)
    assert all(words[0] in (tmp_path / "report" / page).read_text() for page in ("report.md", "report.html"))


def raises(input: Tensor, target: Tensor) -> Tensor:
    raise NotImplementedError("no such kernel")


def of_another_shape(input: Tensor, target: Tensor) -> Tensor:
    return torch.log_softmax(input, -1)


def writes_into_its_input(input: Tensor, target: Tensor) -> Tensor:
    return input.mul_(0).sum(-1)


def test_what_a_users_kernel_does_not_compute_is_a_finding(tmp_path: Path) -> None:
    found = run(raises, cases=["random_scale1"], dtypes=["float32"]).new_findings
    assert found[["path", "symptom", "note"]].values.tolist() == [
        ["raises", "not_computed", "NotImplementedError: no such kernel"]
    ]
    for kernel in (of_another_shape, writes_into_its_input):
        assert set(run(kernel, cases=["random_scale1"], dtypes=["float32"]).new_findings["symptom"]) == {"not_computed"}


def test_a_kernel_that_computes_nothing_has_its_report_and_exit_status_1(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def fails(x, y):\n    raise NotImplementedError('not yet')\n")
    command = [*RUN, "--profile", "quick", "--case", "random_scale1", "--dtype", "float32"]
    command += ["--path-file", f"{tmp_path}/mine.py:fails", "--out", f"{tmp_path}/report"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1, answer.stderr
    assert "not_computed in float32" in answer.stdout and "NotImplementedError: not yet" in answer.stdout
    assert (tmp_path / "report" / "report.html").exists()


def test_what_no_path_computes_is_the_devices_limit_and_no_finding() -> None:
    errors = run(raises, cases=["random_scale1"], dtypes=["float32", "float64"]).tables["errors"]
    lacking = errors["dtype"] == "float64"
    errors = errors.assign(result_class=errors["result_class"].mask(lacking, "not_computed"))
    found, _ = find(errors, [], own=["raises"])
    assert found["dtype"].tolist() == ["float32"]


def test_a_path_of_the_audits_own_that_gave_no_number_anywhere_is_a_finding() -> None:
    errors = execute(plan("quick", ["random_*"], ["log_softmax", "log_target"], ["float32"], "cpu")).tables["errors"]
    one = errors["path"] == "log_target"

    def lacking(rows: pd.Series) -> pd.DataFrame:
        changed = errors.assign(result_class=errors["result_class"].mask(rows, "not_computed"))
        return find(changed, [])[0][["path", "symptom"]].drop_duplicates()

    assert lacking(one).values.tolist() == [["log_target", "not_computed"]]
    assert lacking(one & (errors["case"] != "random_scale1")).empty, "it gave some numbers"
    assert lacking(one | ~one).empty, "a device that computes nothing fails the run itself"


def mean_dropping_the_last(input: Tensor, target: Tensor) -> Tensor:
    return tail_dropped(input, target).sum() / input.numel()


def test_every_kind_of_script_shows_its_finding_with_torch_and_mpmath_alone(tmp_path: Path) -> None:
    """Identities, reduced results, given probabilities, functions given to functions, constants and closures."""
    factor = 2.0

    def scaled(input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(log_softmax(input, -1), torch.softmax(target, -1), reduction="none").sum(-1) * factor

    paths = [
        *("difference", "kl_div_loss", "softmax_log", "log_softmax", "thread_era", "era_difference"),
        *("kl_div_from_logits", "upcast", "distillation", *["scipy_entropy"] * bool(find_spec("scipy"))),
    ]
    cases = ["impossible_matched", "largest", "gap_104", "one_hot", "offset_limit"]
    tables = [execute(plan("quick", cases, paths, ["float32", "float64"], "cpu")).tables["findings"]]
    tables.append(run(scaled, cases=["random_scale1"], dtypes=["float32"]).tables["findings"])
    mean = own_path(mean_dropping_the_last)
    shrinker, row = Shrinker(), torch.tensor([[0.0, 1.0, 2.0]])
    made = shrinker.reproduce(replace(mean, reduction="mean"), row, -row, "cpu", "beyond_bound")
    findings = pd.concat(tables).query("script != ''").drop_duplicates(["path", "reduction", "symptom"])
    assert len(findings) > 12
    scripts, symptoms = [*findings["script"], made["script"]], [*findings["symptom"], "beyond_bound"]
    (tmp_path / "all.py").write_text(
        f"import sys\nfor s in {scripts!r}:\n    exec(s, {{}})\nassert 'audit' not in sys.modules"
    )
    answer = subprocess.run([sys.executable, "all.py"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert answer.returncode == 0, answer.stderr
    numbers = [float(line.split()[1]) for line in answer.stdout.splitlines()]
    for symptom, computed, exact in zip(symptoms, numbers[::2], numbers[1::2], strict=True):
        said = {"not_a_number": math.isnan(computed), "plus_infinity": computed == math.inf}
        said["minus_infinity"] = computed == -math.inf
        # NaN is no sound answer where the divergence is infinite either.
        assert math.isfinite(exact) or symptom == "not_a_number", (symptom, computed, exact)
        assert said.get(symptom, abs(computed - exact) > 1e-6 * max(1, abs(exact))), (symptom, computed, exact)


def test_an_estimator_has_no_bound_even_where_its_reference_is_nan() -> None:
    errors = audit.run(cases=["not_numbers", "two_classes"], paths="llama_cpp", devices="cpu")
    assert (errors["kind"] == "estimator").all() and (errors["reference"] == "nan").any()
    assert errors[["bound", "attainable", "within_bound", "lossy"]].isna().all(axis=None)

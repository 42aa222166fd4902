"""A reduced result has no row: what is wrong with it is a finding like any other."""

from pathlib import Path

import pytest
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax
from typer.testing import CliRunner

import audit
from audit import paths
from audit.cli import app
from audit.machine.plan import plan
from audit.pipeline.loop import execute
from audit.publish.tables import read_table


def mean_of_elements(input: Tensor, target: Tensor) -> Tensor:
    """What torch's "mean" gives where batchmean is promised."""
    return kl_div(log_softmax(input, -1), softmax(target, -1), reduction="mean")


@pytest.fixture
def wrong_batchmean(monkeypatch: pytest.MonkeyPatch) -> None:
    paths.registered()  # what is imported only now would be forgotten with the copy
    monkeypatch.setattr(paths, "PATHS", dict(paths.PATHS))
    audit.path("mean_of_elements", reduction="batchmean")(mean_of_elements)


def test_a_wrong_batchmean_is_a_finding_with_a_reproducer(wrong_batchmean: None) -> None:
    audited = execute(plan("quick", "random_64x81", mean_of_elements, "float32", "cpu"))
    (finding,) = audited.new_findings.to_dict("records")
    assert (finding["path"], finding["reduction"]) == ("mean_of_elements", "batchmean")
    assert "def mean_of_elements" in finding["script"]


def test_it_is_shown_in_every_form_of_the_report(wrong_batchmean: None, tmp_path: Path) -> None:
    filters = ("--case", "random_64x81", "--dtype", "float32", "--device", "cpu", "--path", "mean_of_elements")
    answer = CliRunner().invoke(app, ["run", *filters, "--workers", "1", "--out", str(tmp_path / "latest")])
    assert answer.exit_code == 1, answer.output
    assert "FINDING mean_of_elements float32 cpu: beyond_bound, " in answer.output
    assert read_table(tmp_path / "latest" / "findings.csv", "findings")["row"].isna().all()
    assert "mean_of_elements" in (tmp_path / "latest" / "report.html").read_text(encoding="utf-8")

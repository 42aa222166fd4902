"""report.html, report.md and the plots: complete, and true to the tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from audit.base.workers import Workers
from audit.machine.plan import plan
from audit.pipeline.loop import execute
from audit.publish import figures
from audit.publish.answer import answer
from audit.publish.figures import draw
from audit.publish.matrix import compared, folded, matrix
from audit.publish.page import page
from audit.publish.report import markdown, write_report
from audit.publish.tables import summarise
from audit.publish.verdict import example

PATHS = ["softmax_log", "log_softmax", "log_target", "difference", "kl_div_from_logits"]
# A start tag ends these, which HTML lets one leave open.
IMPLIED = {"td": {"td", "th"}, "th": {"td", "th"}, "tr": {"td", "th", "tr"}}


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return execute(plan("quick", ["near_*", "random_*", "peaked_gap20"], PATHS, devices="cpu")).tables


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "latest"
    environment = {"profile": "quick", "torch": {"version": "2.13"}, "command": "python -m audit run --case near_*"}
    write_report(tables, environment, out)
    return out


def test_the_page_asks_for_nothing_from_anywhere(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    loads = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert loads and all(link.startswith(("data:", "#")) or (folder / link).is_file() for link in loads)
    assert "@import" not in text and "url(" not in text.replace("url(#", "")
    assert (folder / "report.html").stat().st_size < 2_000_000


class Reader(HTMLParser):
    """Checks the nesting of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.handle_startendtag(tag, attributes)
        while self.stack and self.stack[-1] in IMPLIED.get(tag, ()):
            self.stack.pop()
        if tag == "th":
            assert given["scope"] in ("row", "col")
        if tag == "svg":
            assert given["role"] == "img" and given["aria-label"]
        if tag not in ("meta", "link", "br", "input"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.ids.update(value for name, value in attributes if name == "id" and value)

    def handle_endtag(self, tag: str) -> None:
        while tag not in ("td", "th", "tr") and self.stack[-1] in ("td", "th", "tr"):
            self.stack.pop()
        assert self.stack.pop() == tag


def test_the_page_is_well_formed_with_scopes_captions_and_descriptions(folder: Path) -> None:
    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    assert reader.stack == []
    assert reader.seen["h1"] == 1 and reader.seen["svg"] >= 1
    assert reader.seen["caption"] == reader.seen["table"]
    assert reader.seen["figcaption"] == reader.seen["svg"]
    assert set(reader.ids.values()) == {1}


def test_every_row_of_the_summary_but_multiples_of_others_is_on_the_page(tables, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    body = text[text.index('id="summary"') :]
    assert (
        body[: body.index("</table>")].count("<tr>")
        == (~tables["summary"]["reduction"].isin(["sum", "mean"])).sum() + 1
    )


def answers(tables) -> list[str]:
    return [said for _, said in answer(tables, {}).questions]


def test_the_answers_say_what_the_tables_say(tables) -> None:
    negative, best, stable = answers(tables)
    errors = tables["errors"]
    lost = errors[(errors["result_class"] != "finite") & (errors["reduction"] == "none")]["path"].value_counts()
    assert f"in {lost.get('log_softmax', 0):,} rows where softmax_log does in {lost['softmax_log']:,}." in stable
    near = errors.query("path == 'log_softmax' and dtype == 'float32' and reduction == 'none'")
    near = near[near["case"].str.startswith("near_")].assign(closeness=lambda t: t["case"].str[5:].astype(float))
    limit = near.loc[near["negative"].astype(bool), "closeness"].max()
    share = near.loc[near["closeness"] <= limit, "negative"].astype(float).mean()
    assert f"{limit:g} in float32 ({share:.0%}" in negative
    assert "kl_div_from_logits gave none in" in negative
    rows = errors[errors["path"].isin(["log_softmax", "kl_div_from_logits"]) & errors["dtype"].eq("float32")]
    bits = (
        rows.query("reduction == 'none'").pivot(index=["case", "row"], columns="path", values="correct_bits").dropna()
    )
    assert "{kl_div_from_logits:.1f} against {log_softmax:.1f} of 24 bits in float32".format(**bits.median()) in best
    told = answer(tables, {})
    assert told.good and told.verdict == "No new problems"
    assert (
        sum(int(reason.split()[0].replace(",", "")) for _, reason in told.limits) == tables["findings"]["results"].sum()
    )


def test_a_device_that_computed_nothing_is_no_good_news(tables) -> None:
    errors = tables["errors"]
    lost = errors.assign(device="cuda", result_class="not_computed", note="out of memory", computed=float("nan"))
    told = answer({**tables, "errors": pd.concat([errors, lost])}, {})
    assert not told.good and told.verdict.startswith("cuda computed nothing: ")


def test_an_example_is_told_in_the_digits_that_show_it() -> None:
    finding = {
        "note": "",
        "symptom": "beyond_bound",
        "computed": 1.2422612345,
        "reference": "1.2422612311",
        "bound": 1.15e-14,
    }
    assert example(finding) == "computed 1.2422612345, exact 1.2422612311: off by 3.4e-09, 2.96e+05 times the bound"


def test_a_new_finding_is_in_the_answer_and_on_the_page_with_its_script(tables) -> None:
    findings = tables["findings"].assign(status="new", script="print('<it>')")
    assert len(findings)
    planted = {**tables, "findings": findings}
    assert answer(planted, {}).verdict == f"{len(findings)} new problems" and not answer(planted, {}).good
    assert page(planted, {}, {}).count("print(&#x27;&lt;it&gt;&#x27;)") == len(findings)
    assert markdown(planted, {}).count("**New**") == len(findings)


def test_what_is_lossy_is_a_problem_where_it_was_asked_to_be(tables) -> None:
    findings = tables["findings"].assign(status="lossy", symptom="lossy", scaled_error=40.0, worst_ratio=2.0)
    told = {**tables, "findings": findings}
    strict = {"strict": True}
    assert answer(told, {}).verdict == "No new problems" and markdown(told, {}).count("**New**") == 0
    assert answer(told, strict).verdict == f"{len(findings)} new problems" and not answer(told, strict).good
    assert markdown(told, strict).count("**New**") == len(findings) == page(told, strict, {}).count("<h3>New: ")


def test_a_finding_of_what_was_not_computed_says_why(tables) -> None:
    findings = tables["findings"].assign(status="new", note="RuntimeError: <out> of memory", computed=float("nan"))
    body = page({**tables, "findings": findings}, {}, {})
    assert body.count("; RuntimeError: &lt;out&gt; of memory.") == len(findings) and "computed nan" not in body


def test_the_answer_turns_with_the_numbers(tables) -> None:
    errors = tables["errors"]
    stable = (errors["path"] == "log_softmax") & (errors["reduction"] == "none")
    for error, share in ((0.0, "100%"), (1e9, "0%")):
        planted = {**tables, "errors": errors.assign(abs_error=errors["abs_error"].mask(stable, error))}
        found = re.search(r"log_softmax is nearer the exact value in (\S+%) and", answers(planted)[2])
        assert found and (found[1] == share or (error == 0.0 and float(found[1][:-1]) > 40))
    positive = errors.assign(negative=errors["negative"].mask(errors["path"] == "log_softmax", False))
    assert answers({**tables, "errors": positive})[0].startswith("No: none of")


def test_the_matrix_has_the_medians_of_rows_of_logits(tables) -> None:
    row = matrix(tables["errors"]).query("path == 'softmax_log' and dtype == 'float32'").iloc[0]
    every = tables["errors"].query("path == 'softmax_log' and dtype == 'float32'")
    rows = every.query("reduction == 'none' and target_kind == 'logits'")
    assert row["results"] == len(rows) < len(every)
    assert row["correct_bits"] == rows["correct_bits"].median()
    assert row["negative"] == rows["negative"].astype(float).mean()


def test_the_matrix_of_a_long_file_is_of_all_its_rows(tables) -> None:
    errors = tables["errors"].query("case == 'random_scale1' and reduction == 'none'")
    long = {"errors": errors[errors["row"] == 0], "summary": summarise(errors)}
    shown, whole = matrix(compared(long)), matrix(errors)
    assert compared({**long, "errors": errors}) is errors
    assert shown.set_index(["path", "dtype"])["results"].gt(1).any()
    both = shown.merge(whole, on=["path", "dtype", "device"], suffixes=("", "_of_rows"))
    assert len(both) == len(whole) > 0
    for column in ("results", "correct_bits", "negative"):
        assert both[column].astype(float).equals(both[f"{column}_of_rows"].astype(float))


def test_a_way_that_log_softmax_has_no_rows_in_common_with_is_not_compared(tables) -> None:
    given = tables["errors"].query("path == 'log_softmax'").assign(path="given", target_kind="log_probs")
    both = pd.concat([tables["errors"], given])
    assert "given" not in set(matrix(both)["path"]) and set(matrix(given)["path"]) == {"given"}


def test_paths_with_the_same_cells_share_a_row_and_those_on_other_rows_stand_beside_log_softmax_there(tables) -> None:
    errors = tables["errors"]
    copy = errors.query("path == 'softmax_log' and reduction == 'none'").assign(path="copy")
    both = pd.concat([errors, copy])
    assert ["softmax_log", "copy"] in [paths for paths, _ in folded(both)[1]]
    assert matrix(both)["against"].isna().all()
    fewer = both[(both["path"] != "copy") | (both["case"] != copy["case"].iloc[0])]
    partial = matrix(fewer).query("against == against")
    assert set(partial["path"]) == {"copy"}
    there = errors.query("path == 'log_softmax' and dtype == 'float32' and reduction == 'none'")
    there = there[there["case"] != copy["case"].iloc[0]]["correct_bits"].median()
    assert partial.query("dtype == 'float32'")["against"].item() == there
    assert matrix(errors.iloc[:0]).empty


def test_the_worst_error_of_each_path_stands_with_its_share_of_the_bound(tables) -> None:
    errors = tables["errors"]
    share = (errors["abs_error"] / errors["bound"]).groupby([errors["path"], errors["dtype"]]).max()
    section = page(tables, {}, {}).split("The worst errors known</h2>")[1].split("</section>")[0]
    rows = re.findall(r'<th scope="row">(\w+)<td>(\w+)' + "<td>[^<]*" * 4 + "<td>([^<]*)", section)
    told = pd.Series({(path, dtype): float(value) for path, dtype, value in rows})
    pd.testing.assert_series_equal(told.sort_index(), share.sort_index(), check_names=False, rtol=0.01)


def test_a_shade_tells_the_bits_that_are_lost(tables, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    bits = matrix(tables["errors"]).query("path == 'kl_div_from_logits' and dtype == 'float64'")["correct_bits"]
    assert bits.item() > 52.5
    row = text[text.index("kl_div_from_logits</span>") :]
    assert re.findall(r'class="(s\d)"', row[: row.index("</tr>")])[-1] == "s0"


def test_markdown_has_a_row_for_each_path_and_the_command(tables, folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert text.count("\n| ") == len(folded(tables["errors"])[1]) + 1
    assert "python -m audit run --case near" in text
    assert len(text.splitlines()) < 60


def test_plots_stand_beside_the_tables_with_axes_units_sample_and_source(folder: Path) -> None:
    drawn = {file.stem: file.read_text() for file in folder.glob("*.svg")}
    assert set(drawn) >= {"closeness", "training"}
    for name, svg in drawn.items():
        assert svg.startswith("<svg") and re.search(r"\.csv, (recorded .*)?[\d,]+ \w+", svg), name
    assert "correct bits" in drawn["closeness"] and "how far the logits" in drawn["closeness"]


def test_a_plot_is_the_same_file_for_the_same_numbers(tables, folder: Path) -> None:
    drawn = {file.stem: file.read_text() for file in folder.glob("*.svg")}
    with Workers(2) as elsewhere:
        for plots in (draw(tables), draw(tables, elsewhere.submit)):
            assert {name: plot.file for name, plot in plots().items()} == drawn


def test_the_training_story_is_what_its_text_says() -> None:
    rows = pd.read_csv(Path(figures.__file__).with_name("training.csv")).set_index("training")
    wrong, right = rows.loc["KLDivLoss of softmax"], rows.loc["KLDivLoss of log_softmax"]
    assert wrong["loss"].between(-0.1, 0).all() and wrong["loss"].is_monotonic_decreasing
    assert (right["loss"] > 0).all()
    # Two float32 evaluations of one number, averaged.
    assert ((right["loss"] * 10 / right["cross_entropy"] - 1).abs() < 1e-5).all()


def benchmark(path: str, seconds: float, bits: float) -> dict[str, object]:
    params = {"path": path, "rows": 64, "classes": 1_000, "dtype": "float32", "device": "cpu", "direction": "forward"}
    extra = {"ratio": 2.0, "correct_bits": bits, "scaled_error": 0.1}
    return {"params": params, "stats": {"median": seconds}, "extra_info": extra}


def test_accuracy_against_time_is_drawn_from_the_benchmarks_beside_the_report(tables, tmp_path: Path) -> None:
    content = {"benchmarks": [benchmark("fast", 1e-4, 12.0), benchmark("exact", 1e-3, 24.0)]}
    (tmp_path / "bench.json").write_text(json.dumps(content))
    few = {**tables, "errors": tables["errors"].query("case == 'random_64x81'")}
    write_report(few, {}, tmp_path / "latest")
    assert "fast" in (tmp_path / "latest/time.svg").read_text()
    assert "What does accuracy cost?" in (tmp_path / "latest/report.html").read_text()
    (tmp_path / "bench.json").write_text("{interrupted")
    write_report(few, {}, tmp_path / "latest")
    assert not (tmp_path / "latest/time.svg").exists()


def test_of_two_devices_the_plots_show_the_accelerator_and_the_matrix_both(tables) -> None:
    both = {
        name: pd.concat([table, table.assign(device="cuda")]) if "device" in table else table
        for name, table in tables.items()
    }
    assert "results on cuda" in draw(both)()["closeness"].text
    agree = "Yes: cuda and the CPU are no further apart than rounding allows"
    for shown in (page(both, {}, {}), markdown(both, {}), dict(answer(both, {}).questions)["Do CPU and GPU agree?"]):
        assert agree in shown
    assert page(both, {}, {}).count(">CPU and GPU<") == 2 and "CPU and GPU" not in page(tables, {}, {})
    columns = both["errors"].groupby(["device", "dtype"]).ngroups
    row = re.search(r">log_softmax</span>.*?</tr>", page(both, {}, {}))
    assert row and row[0].count("<td") == columns == 8

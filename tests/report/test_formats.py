import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from actbench.analysis.comparison import Comparison
from actbench.report import formats
from actbench.report.command import command_for
from actbench.report.phrases import Language
from tests.report.records import CARD, HOSTILE, MEBIBYTE, alternatives, compared, measured
from tests.report.test_page import LANGUAGES
from tests.runs.example import ENVIRONMENT


def drawn(comparisons: list[Comparison], language: Language = "en", width: int = 80) -> str:
    stream = StringIO()
    Console(file=stream, width=width).print(formats.report_table(comparisons, language))
    return stream.getvalue()


def papers(seeds: int = 3) -> list[Comparison]:
    """Records of the papers' model on the full-size twin."""
    records = measured(seeds, dataset="synthetic:arxiv")
    return compared([record | {"recipe": record["recipe"] | {"hidden": 128}} for record in records])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [80, 160])
def test_the_table_is_complete_at_any_width(language: Language, width: int) -> None:
    comparisons = compared(measured(environment=CARD, gradient_noise=0.125)) + papers()
    text = drawn(comparisons, language, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    for comparison in comparisons:
        for column in formats.columns(comparison):
            for row in comparison.rows:
                assert column.text(row) in text
    assert "runs.jsonl:4,5,6" in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_bytes_in_host_memory_are_never_hidden(language: Language) -> None:
    comparisons = compared(alternatives())
    assert "300.0 MiB" in drawn(comparisons, language, 300)
    assert "300.0 MiB" in formats.report_markdown(comparisons, language)
    assert "300.0" in formats.report_latex(comparisons, language)
    assert formats.report_html(comparisons, language).count("300.0 MiB") == 2
    lines = list(csv.DictReader(io.StringIO(formats.report_csv(comparisons))))
    held = {line["scheme"]: (line["saved_bytes"], line["host_bytes"]) for line in lines}
    assert held["offload"] == ("0", str(300 * MEBIBYTE))
    assert held["checkpoint"][1] == ""
    rows = json.loads(formats.report_json(comparisons, language))["comparisons"][0]["rows"]
    assert [row["host_bytes"] for row in rows] == [None, None, None, 300 * MEBIBYTE]


def test_figures_that_were_not_measured_have_no_column() -> None:
    def keys(comparisons: list[Comparison]) -> list[str]:
        return [column.key for column in formats.columns(comparisons[0])]

    cpu = ["scheme", "score", "difference", "activation", "activation_ratio", "resident", "resident_ratio"]
    cpu += ["speed", "speed_ratio", "runs", "spread"]
    paper = ["paper_activation", "paper_activation_ratio", "paper_score", "paper_speed"]
    assert keys(compared(measured())) == cpu
    assert keys(compared(measured(1))) == [key for key in cpu if key != "difference"]
    assert keys(papers()) == [*cpu, *paper]
    gpu = keys(compared(measured(environment=CARD, gradient_noise=0.1)))
    assert [key for key in keys(compared(alternatives())) if key not in gpu] == ["host"]
    assert [key for key in gpu if key not in cpu] == [
        "allocated", "allocated_ratio", "reserved", "reserved_ratio", "nvml", "nvml_ratio", "noise",
    ]  # fmt: skip


def test_rows_of_different_machines_are_labelled() -> None:
    other = ENVIRONMENT | {"device_name": "another processor"}
    text = drawn(compared(measured() + measured(environment=other), across_machines=True))
    for expected in ("fp32 [A]", "exact [B]", "A: a processor; B: another processor"):
        assert expected in " ".join(text.split())


def test_markdown_has_the_page_then_one_table_a_comparison() -> None:
    text = formats.report_markdown(papers(), "en")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# What it costs to forget part of an activation",
        "## In short",
        "## What is saved on this hardware",
        "## What it costs in accuracy and time",
        "## What remains unknown",
        "## Roll-out in three steps",
        "## Phrases for the meeting",
        "## Figures",
        "### synthetic:arxiv (generated graph) · sage 3 x 128 · 3 epochs · a processor",
        "#### How to reproduce each row",
        "#### Which record a figure comes from",
    ]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert {row.replace("\\|", "").count("|") for row in rows} == {16}
    assert rows[3] == (
        "| exact | 68.80 ± 0.40 | −1.90 \\[−1.90, −1.90\\] | 1.6 | 3.25% | 481.9 | 94% | 4.31 | 0.41x | 3 ok | "
        "4.23 – 4.40 | 30.47 \\[raw\\] | 3.88% \\[calc\\] | 71.16 ± 0.21 \\[recall\\] | 10.03 \\[recall\\] |"
    )
    command = "    actbench run --dataset synthetic:arxiv --model sage --scheme exact --seeds 3 --device cpu --epochs 3"
    assert command in text.splitlines()
    assert "- exact: runs.jsonl:4,5,6" in text.splitlines()


def test_latex_is_a_table_for_booktabs() -> None:
    first, *rest = formats.report_latex(papers(), "en").splitlines()
    assert first == r"% \usepackage{booktabs}"
    # Warnings and what its marks mean travel with the table, as comments.
    told = [line for line in rest if line.startswith("% ")]
    assert rest[: len(told)] == told
    assert any(line.startswith("% !") for line in told)
    assert any("recall: the printed table as remembered" in line for line in told)
    lines = rest[len(told) :]
    assert lines[:3] == [
        r"\begin{table*}",
        r"\centering\footnotesize",
        r"\caption{synthetic:arxiv (generated graph) $\cdot$ sage 3 x 128 $\cdot$ 3 epochs $\cdot$ a processor}",
    ]
    assert lines[-3:] == [r"\bottomrule", r"\end{tabular}", r"\end{table*}"]
    starts = [number for number, line in enumerate(lines) if line.startswith(r"\begin{tabular}")]
    shown = []
    for start in starts:
        alignment = lines[start].removeprefix(r"\begin{tabular}").strip("{}")
        assert lines[start + 1 : start + 4 : 2] == [r"\toprule", r"\midrule"]
        heading, exact = lines[start + 2], lines[start + 5]
        # A line break in front of a bracket would take it for its option, and pdfTeX never end.
        assert not re.search(r"\\\\ *\[", heading)
        cells = exact.removesuffix(r" \\").split(" & ")
        assert len(cells) == heading.count(" & ") + 1 == len(alignment)
        assert len(exact) <= 100
        assert cells[0] == "exact"
        shown += cells[1:]
    assert shown == [
        *(r"68.80 $\pm$ 0.40", r"$-$1.90 [$-$1.90, $-$1.90]", "1.6", r"3.25\%", "481.9", r"94\%", "4.31", "0.41x"),
        *("3 ok", "4.23 -- 4.40", "30.47 [raw]", r"3.88\% [calc]", r"71.16 $\pm$ 0.21 [recall]", "10.03 [recall]"),
    ]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_is_set_by_latex(tmp_path: Path) -> None:
    first, *lines = formats.report_latex(papers() + hostile(), "en").splitlines()
    body = "\n".join([r"\documentclass{article}", first.removeprefix("% "), r"\begin{document}", *lines])
    (tmp_path / "report.tex").write_text(body + "\n\\end{document}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "report.pdf").is_file()


def test_csv_has_a_line_a_row_and_every_field() -> None:
    text = formats.report_csv(compared(measured()))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == formats.CSV_FIELDS
    assert [row["scheme"] for row in rows] == ["fp32", "exact", "blockwise"]
    exact = rows[1]
    assert float(exact["saved_bytes"]) == int(1.57 * 2**20)
    assert float(exact["difference_mean"]) == pytest.approx(-0.019)
    assert (exact["runs_ok"], exact["timed_epochs"], exact["sources"]) == ("3", "60", "runs.jsonl:4,5,6")
    assert (exact["peak_allocated_bytes"], exact["paper_accuracy_mark"], exact["synthetic"]) == ("", "", "true")
    formula = formats.report_csv(compared(measured(dataset="=1+1")))
    assert formula.splitlines()[1].startswith("'=1+1,")


def test_json_leads_from_every_row_to_its_records() -> None:
    content = json.loads(formats.report_json(papers(), "ja"))
    assert list(content) == ["language", "comparisons", "page"]
    (comparison,) = content["comparisons"]
    assert list(comparison) == [
        "dataset", "synthetic", "model", "metric", "reference", "recipe", "graph", "machines", "rows", "analyses",
        "warnings",
    ]  # fmt: skip
    exact = comparison["rows"][1]
    assert exact["records"][0] == {
        "file": "runs.jsonl", "line": 4, "seed": 0, "status": "ok", "started": exact["records"][0]["started"],
    }  # fmt: skip
    assert exact["difference"]["pairs"] == 3
    assert exact["paper"]["accuracy"] == {"value": 71.16, "mark": "recall", "std": 0.21}
    assert exact["bytes_by_kind"].keys() == {"linear", "batch_norm", "relu", "metadata"}
    assert [warning["kind"] for warning in comparison["warnings"]] == ["overlap"]
    assert content["page"][0]["key"] == "summary"
    assert content["page"][0]["heading"] == "結論"


def hostile() -> list[Comparison]:
    """Names that would be markup in one format or another, in every string that a report shows."""
    environment: dict[str, Any] = ENVIRONMENT | {"device_name": HOSTILE, "system": HOSTILE}
    records = measured(2, environment, dataset=HOSTILE, model=HOSTILE)
    for record in records:
        record["metrics"]["name"] = HOSTILE
        record["scheme"] = record["scheme"] | {"name": record["scheme"]["name"].replace("exact", HOSTILE)}
        record["graph"] = record["graph"] | {HOSTILE: HOSTILE}
    failed = records[2] | {"seed": 7, "status": HOSTILE, "metrics": None, "error": {"message": HOSTILE}}
    return compared([*records, failed])


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_stay_names_in_every_format(language: Language) -> None:
    comparisons = hostile()
    assert HOSTILE in " ".join(drawn(comparisons, language, 600).split())
    markdown = formats.report_markdown(comparisons, language)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    # A command stands in a block of code, where nothing is markup.
    assert "<script" not in "".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert len({row.replace("\\\\", "").replace("\\|", "").count("|") for row in table}) == 1
    latex = formats.report_latex(comparisons, language)
    assert r"\end{table*}" in latex
    assert r"\end{table}" not in latex
    assert r"\textbackslash{}end\{table\}" in latex
    rows = list(csv.DictReader(io.StringIO(formats.report_csv(comparisons))))
    assert {row["dataset"] for row in rows} == {HOSTILE}
    assert json.loads(formats.report_json(comparisons, language))["comparisons"][0]["model"] == HOSTILE
    page = formats.report_html(comparisons, language)
    assert page.count("<script") == 1
    assert "alert(" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_needs_nothing_else_and_holds_everything(language: Language) -> None:
    (comparison,) = papers()
    page = formats.report_html([comparison], language)
    # Names of XML's vocabularies are no addresses that anything is fetched from.
    links = page.replace("http://www.w3.org/", "")
    for fetched in ("http:", "https:", "src=", "@import", "url(/", "<link", "<img", "<iframe"):
        assert fetched not in links
    for row in comparison.rows:
        assert command_for([each.record for each in row.located]) in page
        assert all(str(each.source) in page for each in row.located)
        assert all(column.text(row) in page for column in formats.columns(comparison))
    assert page.count("<svg") == 4
    ids = [part.partition('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert f'<html lang="{language}">' in page


def test_a_comparison_without_any_figure_still_makes_every_format() -> None:
    records = [r | {"status": "oom", "metrics": None, "saved_bytes": None, "rss_peak_bytes": None} for r in measured(1)]
    empty: dict[str, Any] = {"epoch_seconds": [], "ledger": [], "curve": {"loss": [], "valid": []}, "graph": None}
    comparisons = compared([record | empty for record in records])
    assert drawn(comparisons).count("1 oom") == 3
    assert "<svg" not in formats.report_html(comparisons, "en")
    for text in (formats.report_markdown(comparisons, "ja"), formats.report_latex(comparisons, "en")):
        assert text.count("1 oom") == 3
    assert formats.report_csv(comparisons).count("\n") == 4
    assert json.loads(formats.report_json(comparisons, "en"))["comparisons"][0]["rows"][0]["saved_bytes"] is None
    assert replace(comparisons[0]).has_paper_figures is False

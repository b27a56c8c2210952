import io
import json
import re

import pytest
from rich.console import Console

from actbench.analysis.comparison import compare
from actbench.report import formats
from actbench.report.phrases import say, word
from actbench.report.study import estimate_text, groups, study_sheets, study_subject, study_table
from actbench.report.study_charts import draw_study_charts
from tests.analysis.test_comparison import located
from tests.records.test_study import changed
from tests.report.records import HOSTILE, measured
from tests.report.test_charts import texts
from tests.report.test_page import LANGUAGES
from tests.studies.example import study


def terminal(language: str) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(study_table(study(), "ja" if language == "ja" else "en"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tables_name_every_scheme_parameter_and_call_and_that_the_graph_is_generated() -> None:
    text = terminal("en")
    for name in ("fp32", "exact", "blockwise-vm", "convs.0.lin_l.weight", "batch_norm 2", "linear 6", "block 1,024"):
        assert name in text
    assert "synthetic:arxiv@0.002 (generated graph)" in text
    assert "is a generated graph: its activations are not those of the real data" in text
    assert "Values in their blocks · blockwise, blockwise-vm" in text
    assert "over 3 draws of a scheme's noise (analysis.json)" in text


def test_settings_that_are_not_the_recipes_are_in_the_title() -> None:
    assert (
        say(study_subject(study()), "en")
        == "synthetic:arxiv@0.002 (generated graph) · sage 3 x 16 · 1 epoch · "
        + (study().document["environment"]["device_name"])
    )
    assert " · 1 epoch · dropout 0.0 · " in say(study_subject(study(unusual={"dropout": 0.0})), "en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sheet_has_a_cell_for_every_heading(language: str) -> None:
    for sheet in study_sheets(study(), "ja" if language == "ja" else "en"):
        assert sheet.rows
        assert all(len(row) == len(sheet.headings) for row in sheet.rows)
        assert say(sheet.title, "ja" if language == "ja" else "en")


def test_where_variance_minimised_levels_are_worse_is_named_and_where_they_are_not_is_said() -> None:
    def verdict(*ratios: float | None) -> str:
        schemes = study().document["schemes"]
        calls = [
            call | {"normal_over_uniform": ratio} for call, ratio in zip(schemes[1]["calls"], ratios, strict=False)
        ]
        one = study(schemes=[schemes[1] | {"calls": calls}])
        sheet = next(s for s in study_sheets(one, "en") if s.title.key == "study.variance")
        return say(sheet.notes[0], "en")

    assert "worse than uniform ones here for: linear 2 (+3.4%), batch_norm 1 (+0.2%)." in verdict(0.9, 1.034, 1.002)
    assert "worse than uniform ones for no input here" in verdict(0.9, 0.95, 1.0)
    assert "changes by −10.0% to −5.0%" in verdict(0.9, 0.95, 1.0)
    assert verdict(1.0, 1.0) == word("study.same", "en")
    assert "Mean variance" in verdict(None)


def test_estimates_are_read_with_their_error() -> None:
    assert estimate_text({"mean": 8.5432, "standard_error": 0.312}) == "8.54 ± 0.3"
    assert estimate_text({"mean": -0.00132, "standard_error": 0.0021}) == "−0.00132 ± 0.002"
    assert estimate_text({"mean": 0, "standard_error": 0}) == "0"
    assert estimate_text(None) == "–"


def test_schemes_that_store_alike_share_a_sheet() -> None:
    assert [names for names, _ in groups(study())] == ["exact", "blockwise, blockwise-vm"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_charts_show_every_call_and_tell_sources_apart_without_colour(language: str) -> None:
    charts = draw_study_charts(study(), "ja" if language == "ja" else "en")
    assert [chart.name for _, chart in charts] == [
        "study-noise", "study-values-1", "study-errors-1", "study-values-2", "study-errors-2",
    ]  # fmt: skip
    noise, values = charts[0][1], charts[1][1]
    assert {patch.get_hatch() for patch in noise.figure.axes[0].patches} >= {"", "///"}
    assert "batch_norm 2" in texts(values.as_svg())
    assert len(values.figure.axes) == 8
    styles = {str(line.get_linestyle()) for line in values.figure.axes[0].lines}
    assert len(styles) == 2
    assert all(chart.as_png()[:4] == b"\x89PNG" for _, chart in charts[:3])


def test_a_study_of_fp32_alone_has_one_table_and_no_chart() -> None:
    alone = study(schemes=study().document["schemes"][:1])
    assert [sheet.title.key for sheet in study_sheets(alone, "en")] == ["study.noise"]
    assert draw_study_charts(alone, "en") == []


def test_every_format_of_a_report_shows_it() -> None:
    comparisons = compare(located(*measured()), studies=[study()])
    total = study().document["schemes"][1]["noise"]["total"]["mean"]
    console = Console(file=io.StringIO(), width=100)
    console.print(formats.report_table(comparisons, "en"))
    assert isinstance(console.file, io.StringIO)
    html = formats.report_html(comparisons, "en")
    for text in (console.file.getvalue(), formats.report_markdown(comparisons, "en"), html):
        assert f"{total:.3g}" in text
        assert "3 draws, from analysis.json" in text
        assert "batch" in text
        assert "Rounding variance" in text
    assert html.count("<figure") == 4 + 5
    assert len(set(re.findall(r'\bid="([^"]+)"', html))) == len(re.findall(r'\bid="([^"]+)"', html))
    assert f"{total:.3g}" in formats.report_latex(comparisons, "en")
    assert str(total) in formats.report_csv(comparisons)
    (found,) = json.loads(formats.report_json(comparisons, "en"))["comparisons"][0]["analyses"]
    assert found == {"file": "analysis.json"} | json.loads(json.dumps(study().document))


def test_hostile_names_are_no_markup() -> None:
    schemes = study().document["schemes"]
    for place in ((1, "noise", "tensors", 0, "parameter"), (1, "calls", 0, "call"), (1, "scheme", "name")):
        schemes = changed(schemes, place, HOSTILE)
    bad = study(HOSTILE, schemes=schemes)
    comparisons = compare(located(*measured()), studies=[bad])
    html = formats.report_html(comparisons, "en")
    assert '<script>alert("x")' not in html
    assert "&lt;script&gt;alert" in html
    markdown = formats.report_markdown(comparisons, "en")
    assert "<script>" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|") and "alert" in line]
    assert rows

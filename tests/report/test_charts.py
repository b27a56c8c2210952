import errno
import html
import os
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from actbench.report import charts
from actbench.report.charts import Chart, chart_language, draw_charts, japanese_font, write_charts
from actbench.report.phrases import word
from tests.report.records import HOSTILE, alternatives, compared, measured
from tests.report.test_formats import hostile
from tests.report.test_page import LANGUAGES

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> list[Chart]:
    return draw_charts(compared(measured())[0], "en")


def texts(svg: str) -> str:
    return "\n".join("".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def test_there_are_four_charts_and_their_text_is_text(drawn: list[Chart]) -> None:
    assert [chart.name for chart in drawn] == ["pareto", "bytes", "curves", "times"]
    for chart in drawn:
        found = texts(chart.as_svg())
        assert all(scheme in found for scheme in ("fp32", "exact", "blockwise"))
    found = texts(drawn[1].as_svg())
    assert all(kind in found for kind in ("linear inputs", "batch-norm inputs", "ReLU", "blocks' minimum and scale"))
    # What is thirty times smaller has a scale of its own.
    assert "enlarged" in found


def test_what_lies_in_host_memory_has_no_place_on_an_axis_of_device_memory() -> None:
    (comparison,) = compared(alternatives())
    pareto, *_ = draw_charts(comparison, "en")
    assert "checkpoint" in texts(pareto.as_svg())
    assert "offload" not in texts(pareto.as_svg())
    record = alternatives()[0] | {"scheme": {"name": "checkpoint", "bits": None}}
    record["ledger"] = [{"operation": "layer", "call": 2, "shape": [9], "dtype": "float32", "saved_bytes": 2**20}]
    _, bytes_, *_ = draw_charts(compared([*alternatives()[:1], record])[0], "en")
    assert "inputs of recomputed layers" in texts(bytes_.as_svg())


def test_png_is_large_enough_to_print(drawn: list[Chart]) -> None:
    for chart in drawn:
        png = chart.as_png()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", png[16:24])
        assert width >= 1400
        assert height >= 400


def test_the_same_records_give_the_same_file() -> None:
    first, second = (draw_charts(compared(measured())[0], "en")[2].as_svg() for _ in range(2))
    assert first == second


def test_schemes_are_told_apart_without_colour(drawn: list[Chart]) -> None:
    """Line styles and markers in the curves, hatches in the bars."""
    lines = [line for line in drawn[2].figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    assert len({str(line.get_marker()) for line in lines}) == 3
    assert len(set(re.findall(r"stroke-dasharray: [\d., ]+", drawn[2].as_svg()))) >= 2
    bars = {patch.get_facecolor(): patch.get_hatch() for axes in drawn[1].figure.axes for patch in axes.patches}
    assert len(set(bars.values())) == len(bars) > 2


def test_an_inline_chart_takes_the_pages_colour_and_keeps_its_ids(drawn: list[Chart]) -> None:
    svg = drawn[0].as_inline_svg("first")
    assert svg.startswith("<svg")
    assert charts.INK not in svg
    assert "currentColor" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert all(name.startswith("first-") for name in ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) <= set(ids)


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_are_no_mathematics_and_no_markup(language: str) -> None:
    for chart in draw_charts(hostile()[0], "ja" if language == "ja" else "en"):
        assert HOSTILE in texts(chart.as_svg())
        assert chart.as_png()


def test_japanese_where_there_is_a_font_and_english_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    (comparison,) = compared(measured())
    if japanese_font() is None:
        pytest.skip("there is no Japanese font here: apt-get install -y fonts-noto-cjk")
    assert word("axis.epoch", "ja") in texts(draw_charts(comparison, "ja")[2].as_svg())
    monkeypatch.setattr(charts, "japanese_font", lambda: None)
    assert chart_language("ja") == "en"
    assert "epoch" in texts(draw_charts(comparison, "ja")[2].as_svg())


def test_what_was_not_measured_is_not_drawn() -> None:
    (alone,) = compared(measured(1)[:1])
    assert [chart.name for chart in draw_charts(alone, "en")] == ["bytes", "curves", "times"]
    (one_epoch,) = compared(measured(1, epoch_seconds=[1.0], curve={"loss": [1.0], "valid": [0.5]}, ledger=[]))
    assert [chart.name for chart in draw_charts(one_epoch, "en")] == ["pareto"]


def test_files_have_names_that_any_system_takes(tmp_path: Path) -> None:
    written = list(write_charts(hostile(), "en", tmp_path))
    assert len(written) == 8
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert all(re.fullmatch(r"1-[A-Za-z0-9.-]+\.(png|svg)", path.name) for path in written)


@pytest.mark.parametrize(("dataset", "synthetic"), [("synthetic:arxiv@0.1", True), ("cora", False)])
def test_a_file_says_of_what_it_is_and_whether_that_was_generated(
    tmp_path: Path, dataset: str, synthetic: bool
) -> None:
    """A picture is shown without its report."""
    records = measured(dataset=dataset)
    for record in records:
        record["graph"] = record["graph"] | {"synthetic": synthetic}
    (comparison,) = compared(records)
    drawings = [path for path in write_charts([comparison], "en", tmp_path) if path.suffix == ".svg"]
    assert len(drawings) == 4
    for path in drawings:
        drawing = html.unescape(path.read_text(encoding="utf-8"))
        assert dataset in drawing
        assert ("(generated graph)" in drawing) == synthetic


def test_a_full_disk_leaves_the_charts_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (comparison,) = compared(measured())
    before = {path: path.read_bytes() for path in write_charts([comparison], "en", tmp_path)}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        list(write_charts([comparison], "ja", tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

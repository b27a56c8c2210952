"""Charts of an analysis: values in their blocks, gradient noise by source, error by block size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from actbench.quant.levels import clipped_normal_masses
from actbench.records.study import Study
from actbench.report.charts import INK, Chart, chart_language, chart_settings, write_chart
from actbench.report.phrases import Language, Sentence, say, word
from actbench.report.study import groups, study_subject
from actbench.scheme import LEVELS

_BLUE, _VERMILLION, _GREY = "#0072b2", "#d55e00", "#bbbbbb"
_STYLES: Final[dict[str, Any]] = {
    "uniform": {"color": _VERMILLION, "linestyle": (0, (2, 1.5)), "marker": "^"},
    "clipped-normal": {"color": _BLUE, "linestyle": "-", "marker": "s"},
}
_PARTS: Final[dict[str, Any]] = {
    "projection": {"color": _VERMILLION, "hatch": "///", "offset": -0.19},
    "rounding": {"color": _BLUE, "hatch": "", "offset": 0.19},
}
_COLUMNS: Final = 4
_LEAST_PERCENT: Final = 0.01


def draw_study_charts(study: Study, language: Language) -> list[tuple[Sentence, Chart]]:
    """All charts that the study has figures for, each with its title."""
    language = chart_language(language)
    settings = chart_settings(language)
    charts = []
    with mpl.rc_context(settings):
        noise = _draw_noise(study, language)
        if noise:
            charts.append((Sentence("study.noise"), Chart("study-noise", "study.chart.noise.note", noise, settings)))
        for number, (schemes, calls) in enumerate(groups(study), start=1):
            ranged = [call for call in calls if call["levels"]]
            painters: tuple[tuple[str, Callable[..., Figure]], ...] = (
                ("values", _draw_values),
                ("errors", _draw_errors),
            )
            for name, draw in painters if ranged else ():
                chart = Chart(f"study-{name}-{number}", f"study.chart.{name}.note", draw(ranged, language), settings)
                charts.append((Sentence(f"study.{name}", {"schemes": schemes}), chart))
    return charts


def write_study_charts(study: Study, language: Language, folder: Path, stem: str) -> Iterator[Path]:
    """Write every chart as PNG and SVG into `folder`, which exists; yields the files' paths."""
    subject = say(study_subject(study), chart_language(language))
    for _, chart in draw_study_charts(study, language):
        yield from write_chart(chart, folder, stem, subject)


def _draw_noise(study: Study, language: Language) -> Figure | None:
    rows = [each for each in study.document["schemes"] if any(each["noise"][part]["mean"] > 0 for part in _PARTS)]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 1.5 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    found = [each["noise"][part]["mean"] for each in rows for part in _PARTS if each["noise"][part]["mean"] > 0]
    lowest = 10.0 ** math.floor(math.log10(min(found) / 1.5))
    for part, style in _PARTS.items():
        drawn = [
            (position, each["noise"][part]) for position, each in enumerate(rows) if each["noise"][part]["mean"] > 0
        ]
        axes.barh(
            [position + style["offset"] for position, _ in drawn], [e["mean"] - lowest for _, e in drawn], left=lowest,
            height=0.36, color=style["color"], hatch=style["hatch"], edgecolor=INK, linewidth=0.5,
            xerr=[e["standard_error"] for _, e in drawn], error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 3},
            label=word(f"study.column.{part}", language),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(left=lowest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [each["scheme"]["name"] for each in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(word("study.noise", language))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _panels(calls: list[dict[str, Any]], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with an axis for every call, in rows of four."""
    columns = min(_COLUMNS, len(calls))
    rows = -(-len(calls) // columns)
    figure = Figure(figsize=(max(1.9 * columns, 4.5), 0.9 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    axes = list(grid.flat)
    for unused in axes[len(calls) :]:
        unused.remove()
    for each, call in zip(axes, calls, strict=False):
        each.set_title(call["call"], fontsize=9)
        each.tick_params(labelsize=8, labelbottom=True)
    return figure, axes[: len(calls)]


def _draw_values(calls: list[dict[str, Any]], language: Language) -> Figure:
    figure, panels = _panels(calls, 1.5)
    for axes, call in zip(panels, calls, strict=True):
        counts = np.array(call["histogram"], dtype=np.float64)
        bins = len(counts)
        edges = np.linspace(0, 1, bins + 1)
        axes.stairs(
            100 * counts / counts.sum(),
            edges,
            fill=True,
            color=_GREY,
            edgecolor=INK,
            label=word("study.measured", language),
        )
        masses = {"uniform": np.full(bins, 1 / bins)}
        if call["divergence"]["clipped-normal"] is not None:
            masses["clipped-normal"] = clipped_normal_masses(2 ** call["bits"] - 1, call["block_length"], bins)
        for name, values in masses.items():
            style = _STYLES[name] | {"marker": ""}
            axes.plot(
                (edges[:-1] + edges[1:]) / 2,
                100 * values,
                linewidth=1.6,
                label=word(f"study.{name}", language),
                **style,
            )
        # A spike of zeros and the tails of a normal are both to be seen.
        axes.set_yscale("log")
        axes.set_ylim(_LEAST_PERCENT, 100)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    _finish(figure, panels, word("study.axis.position", language), word("study.axis.share", language))
    return figure


def _draw_errors(calls: list[dict[str, Any]], language: Language) -> Figure:
    figure, panels = _panels(calls, 1.6)
    for axes, call in zip(panels, calls, strict=True):
        lengths = [block["length"] for block in call["blocks"]]
        for name in LEVELS:
            errors = [100 * block["error"][name] / call["rms"] for block in call["blocks"]]
            axes.plot(
                lengths, errors, linewidth=1.5, markersize=3.5, label=word(f"study.{name}", language), **_STYLES[name]
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([16, 64, 256, 1024]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(["16", "64", "256", "1024"])
        axes.set_ylim(bottom=0)
    _finish(figure, panels, word("study.axis.length", language), word("study.axis.error", language))
    return figure


def _finish(figure: Figure, panels: list[Axes], horizontal: str, vertical: str) -> None:
    figure.supxlabel(horizontal, fontsize=10)
    figure.supylabel(vertical, fontsize=10)
    found = max((axes.get_legend_handles_labels() for axes in panels), key=lambda pair: len(pair[1]))
    figure.legend(*found, loc="outside upper center", ncols=3)

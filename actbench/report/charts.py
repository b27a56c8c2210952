"""Charts of a comparison as PNG and SVG, told apart by colour, marker, line and hatch, in the report's language."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from actbench.analysis.comparison import ComparedRow, Comparison, pareto_front
from actbench.records import replace_file
from actbench.report.page import about, metric_name
from actbench.report.phrases import MEBIBYTE, Language, Sentence, say, word

INK: Final = "#1b1d21"
"""Text, axes and the reference; an inline SVG has the page's own colour in its place."""
_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
_COLOURS: Final = (_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY)
_MARKERS: Final = ("s", "^", "D", "v", "P", "X", "<", ">")
_LINES: Final = ((0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1.5, 1.5, 1.5, 1.5)), (0, (10, 3)))
_KIND_STYLES: Final = {
    "layer": (_PURPLE, "---"),
    "linear": (_BLUE, ""),
    "batch_norm": (_ORANGE, "///"),
    "relu": (_GREEN, "..."),
    "dropout": (_SKY, "\\\\\\"),
    "attention": (_PURPLE, "ooo"),
    "metadata": (_VERMILLION, "xxx"),
    "other": ("#999999", "++"),
}
_ENLARGE_BELOW: Final = 0.25
"""Bars shorter than this share of the longest are drawn again on a scale of their own."""
_MOST_DOTS: Final = 300
_PLOT_INCHES: Final = 3.9
_LEGEND_LINE_INCHES: Final = 0.23
_JAPANESE_FONTS: Final = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAPGothic",
    "IPAGothic",
    "TakaoPGothic",
    "VL PGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
)
_JAPANESE_FILES: Final = re.compile(
    r"NotoSans(CJK|JP)[^/]*Regular|ipa[ex]?[gp]+\.|TakaoPGothic|VL-PGothic", re.IGNORECASE
)


@dataclass(frozen=True)
class Chart:
    """A chart: its name in file names and texts, its note, and the figure."""

    name: str
    note: str
    figure: Figure
    settings: Any

    def as_png(self) -> bytes:
        """The chart on white, at 200 dots an inch."""
        buffer = io.BytesIO()
        with mpl.rc_context(self.settings):
            self.figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    def as_svg(self) -> str:
        """The chart as an SVG file of its own, on white; text stays text."""
        return self._svg(transparent=False)

    def as_inline_svg(self, prefix: str) -> str:
        """The chart as an element of a page, in the page's colour of text; `prefix` keeps its ids its own."""
        text = self._svg(transparent=True)
        text = text[text.index("<svg") :]
        text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{prefix}-", text)
        return text.replace(INK, "currentColor")

    def _svg(self, transparent: bool) -> str:
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with mpl.rc_context(self.settings):
            self.figure.savefig(buffer, format="svg", transparent=transparent, metadata=nothing)
        return _numbered(buffer.getvalue().decode())


def _numbered(svg: str) -> str:
    """`svg` with its hashed ids, which differ from one drawing to the next, replaced by numbers."""
    numbers: dict[str, int] = {}
    return re.sub(
        r'(\bid="|url\(#|href="#)([a-z][0-9a-f]{10})(?=[")])',
        lambda found: f"{found[1]}n{numbers.setdefault(found[2], len(numbers))}",
        svg,
    )


@cache
def japanese_font() -> str | None:
    """The name of an installed font with Japanese characters, None without one."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    if not known.intersection(_JAPANESE_FONTS):
        # matplotlib's list of fonts is a cache, older than a font installed since.
        for path in font_manager.findSystemFonts():
            if _JAPANESE_FILES.search(path):
                font_manager.fontManager.addfont(path)
        known = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _JAPANESE_FONTS if name in known), None)


def chart_language(language: Language) -> Language:
    """The language that charts can be labelled in here: English where no Japanese font is installed."""
    return "en" if language == "ja" and japanese_font() is None else language


def chart_settings(language: Language) -> Any:
    """matplotlib's settings for charts in a language that they can be labelled in."""
    font = japanese_font() if language == "ja" else None
    return _SETTINGS | {"font.family": [*([font] if font else []), "DejaVu Sans", "sans-serif"]}


def draw_charts(comparison: Comparison, language: Language) -> list[Chart]:
    """All charts that the comparison has figures for."""
    language = chart_language(language)
    settings = chart_settings(language)
    painters: tuple[tuple[str, Callable[[Comparison, Language], Figure | None]], ...] = (
        ("pareto", _draw_pareto),
        ("bytes", _draw_bytes),
        ("curves", _draw_curves),
        ("times", _draw_times),
    )
    charts = []
    with mpl.rc_context(settings):
        for name, draw in painters:
            figure = draw(comparison, language)
            if figure is not None:
                note = f"chart.{name}.note"
                if name == "bytes" and len(figure.axes) == 1:
                    note += ".plain"
                charts.append(Chart(name, note, figure, settings))
    return charts


def write_charts(comparisons: Sequence[Comparison], language: Language, folder: Path) -> Iterator[Path]:
    """Write every chart as PNG and SVG into `folder`, which exists; yields the files' paths."""
    for number, comparison in enumerate(comparisons, start=1):
        stem = file_stem(f"{number}-{Path(comparison.dataset).name}-{comparison.model}")
        for chart in draw_charts(comparison, language):
            yield from write_chart(chart, folder, stem, say(about(comparison), chart_language(language)))


def file_stem(name: str) -> str:
    """`name` as any system takes it for the beginning of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)[:80]


def write_chart(chart: Chart, folder: Path, stem: str, subject: str) -> Iterator[Path]:
    """Write a chart as PNG and SVG into `folder`, its files' names beginning with `stem`; yields their paths.

    A file leaves the report that names the graph, and whether it is generated: so `subject` stands in the picture.
    """
    with mpl.rc_context(chart.settings):
        chart.figure.suptitle(subject, x=0.01, horizontalalignment="left", fontsize=9, wrap=True)
    for suffix, content in (("png", chart.as_png()), ("svg", chart.as_svg().encode())):
        path = folder / f"{stem}-{chart.name}.{suffix}"
        replace_file(path, content)
        yield path


_SETTINGS: Final[Any] = {
    "font.size": 10,
    # Names may hold dollar signs.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",
    "svg.hashsalt": "actbench",
}


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    line: Any


def _styles(comparison: Comparison) -> list[tuple[ComparedRow, _Style]]:
    """The reference in ink, solid and round; every other scheme with a colour, marker and line of its own."""
    styled, number = [], 0
    for row in comparison.rows:
        if row.is_reference and not row.machine.label:
            styled.append((row, _Style(INK, "o", "-")))
            continue
        styles = (_COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)], _LINES[number % len(_LINES)])
        styled.append((row, _Style(*styles)))
        number += 1
    return styled


def _draw_pareto(comparison: Comparison, language: Language) -> Figure | None:
    points = [
        (row, style, row.summary.saved_bytes / MEBIBYTE, 100 * row.summary.score_mean)
        for row, style in _styles(comparison)
        if row.summary.saved_bytes and not row.summary.host_bytes and row.summary.score_mean is not None
    ]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place in comparison.machines:
        front = [
            (row.summary.saved_bytes / MEBIBYTE, 100 * (row.summary.score_mean or 0))
            for row in pareto_front(row for row, *_ in points if row.machine is place)
            if row.summary.saved_bytes
        ]
        label = word("chart.front", language) + (f" [{place.label}]" if place.label else "")
        if front:
            axes.step(
                *zip(*front, strict=True), where="post", color=INK, alpha=0.5, linewidth=1.2, linestyle=(0, (1, 2)),
                label=label,
            )  # fmt: skip
    for number, (row, style, mebibytes, score) in enumerate(points):
        spread = None if row.summary.score_std is None else 100 * row.summary.score_std
        axes.errorbar(
            mebibytes, score, yerr=spread, fmt=style.marker, color=style.colour, markeredgecolor=INK, markersize=8,
            markeredgewidth=0.6, elinewidth=1.3, capsize=4 + 2 * number, label=row.label,
        )  # fmt: skip
    axes.set_xscale("log")
    values = [mebibytes for _, _, mebibytes, _ in points]
    _set_log_ticks(axes, min(values), max(values))
    axes.set_xlabel(word("axis.activation", language))
    axes.set_ylabel(_titled("axis.score", comparison, language))
    _set_legend(figure, axes)
    return figure


def _draw_bytes(comparison: Comparison, language: Language) -> Figure | None:
    rows = [row for row in comparison.rows if row.kinds]
    if not rows:
        return None
    totals = {id(row): sum(row.kinds.values()) for row in rows}
    small = [row for row in rows if totals[id(row)] < _ENLARGE_BELOW * max(totals.values())]
    panels = [rows, small] if small else [rows]
    heights = [len(panel) + 0.8 for panel in panels]
    figure = Figure(figsize=(7.2, 1.3 + 0.34 * sum(heights) + 0.35 * len(panels)), layout="constrained")
    drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel, title in zip(drawn, panels, ("chart.all", "chart.enlarged"), strict=False):
        _draw_bars(axes, panel, language)
        if small:
            axes.set_title(word(title, language), loc="left", fontsize=10)
    drawn[-1].set_xlabel(word("axis.bytes", language))
    handles: dict[str, Any] = {}
    for axes in drawn:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure


def _draw_bars(axes: Axes, rows: list[ComparedRow], language: Language) -> None:
    named: set[str] = set()
    for position, row in enumerate(rows):
        left = 0.0
        for kind, (colour, hatch) in _KIND_STYLES.items():
            if kind not in row.kinds:
                continue
            width = row.kinds[kind] / MEBIBYTE
            label = word(f"kind.{kind}", language)
            axes.barh(
                position, width, left=left, height=0.66, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.5,
                label="_" if label in named else label,
            )  # fmt: skip
            named.add(label)
            left += width
        axes.annotate(
            f"{left:#.3g}" if left < 100 else f"{left:,.0f}",
            (left, position),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.09)
    axes.grid(visible=False, axis="y")


def _draw_curves(comparison: Comparison, language: Language) -> Figure | None:
    curves = [(row, style, row.curve) for row, style in _styles(comparison) if row.curve and len(row.curve.mean) > 1]
    if not curves:
        return None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (row, style, curve) in enumerate(curves):
        step = max(1, len(curve.mean) // 8)
        epochs = range(1, len(curve.mean) + 1)
        axes.plot(
            epochs, [100 * value for value in curve.mean], color=style.colour, linestyle=style.line, linewidth=1.8,
            marker=style.marker, markersize=5, markevery=(number * step // len(curves), step), label=row.label,
        )  # fmt: skip
        if curve.seeds > 1:
            low, high = ([100 * value for value in values] for values in (curve.low, curve.high))
            axes.fill_between(epochs, low, high, color=style.colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(word("axis.epoch", language))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(_titled("axis.valid", comparison, language))
    _set_legend(figure, axes)
    return figure


def _draw_times(comparison: Comparison, language: Language) -> Figure | None:
    timed = [(row, style) for row, style in _styles(comparison) if len(row.epoch_seconds) > 1]
    if not timed:
        return None
    figure = Figure(figsize=(7.2, 1.0 + 0.55 * len(timed)), layout="constrained")
    axes = figure.add_subplot()
    for position, (row, style) in enumerate(timed):
        samples = [1000 * seconds for seconds in row.epoch_seconds[:: math.ceil(len(row.epoch_seconds) / _MOST_DOTS)]]
        # Spread evenly by the golden ratio, the same on every drawing.
        heights = [position + 0.5 * ((0.618 * index) % 1 - 0.5) for index in range(len(samples))]
        axes.plot(
            samples, heights, style.marker, color=style.colour, markersize=3, alpha=0.5, markeredgewidth=0, zorder=2
        )
        _draw_box(axes, position, [1000 * seconds for seconds in row.epoch_seconds])
    axes.set_yticks(range(len(timed)), [row.label for row, _ in timed])
    axes.set_ylim(len(timed) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(word("axis.seconds", language))
    return figure


def _draw_box(axes: Axes, position: int, values: list[float]) -> None:
    """The middle half with the median, and whiskers to the slowest and fastest tenth."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    style: dict[str, Any] = {"color": INK, "linewidth": 1.2, "zorder": 3}
    axes.barh(position, upper - lower, left=lower, height=0.6, fill=False, edgecolor=INK, linewidth=1.2, zorder=3)
    axes.hlines([position, position], [tenths[0], upper], [lower, tenths[-1]], **style)
    axes.vlines([tenths[0], tenths[-1]], position - 0.16, position + 0.16, **style)
    axes.vlines(median, position - 0.3, position + 0.3, **style | {"linewidth": 2.4})


def _titled(key: str, comparison: Comparison, language: Language) -> str:
    return say(Sentence(key, {"metric": metric_name(comparison)}), language)


def _set_log_ticks(axes: Axes, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times the powers of ten, in plain figures; a range of less than that gets one decade."""
    low, high = low / 1.4, high * 1.4
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if f"{tick:e}"[0] == "1"]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _set_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), 5 if max(map(len, labels)) < 16 else 2)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.set_figheight(_PLOT_INCHES + _LEGEND_LINE_INCHES * math.ceil(len(labels) / columns))

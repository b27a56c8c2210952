"""Records of unknown origin: whatever stands in a field, a report shows it as text or refuses it in one sentence."""

import copy
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from actbench.analysis import Settings, check_records, choose_final, compare, read_located, summarise
from actbench.analysis.comparison import Located, Source
from actbench.errors import ActbenchError
from actbench.records import Record, RecordFile
from actbench.records.study import read_study
from actbench.report import formats, github_annotations, junit_xml, step_summary, verdict_table
from actbench.report.table import ledger_table, render_tables
from actbench.report.terminal import _PrintableConsole
from tests.report.records import CARD, measured
from tests.runs.example import example_record
from tests.studies.example import study

Path_ = tuple[str | int, ...]
MARK = "\"'><img src=x onerror=alert({0})></script><!--{{{{7*7}}}}&#{0};]]>"


def walk(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """All values within `value`, with their paths; of a list the first two."""
    if path:
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in items:
        yield from walk(each, (*path, key))


def put(record: Record, path: Path_, value: Any) -> Record:
    """A copy of `record` with `value` at `path`."""
    changed = copy.deepcopy(record)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def whole() -> list[Record]:
    """Records with every field that a run writes, those of runs that failed included."""
    records = measured(2, CARD, gradient_noise=0.1, host_saved_bytes=5, reasons={"nvml_peak_bytes": "not listed"})
    error = {"type": "RuntimeError", "message": "it broke", "epoch": 1, "traceback": "line 1\nline 2"}
    ended = records[2] | {"seed": 7, "status": "error", "metrics": None, "error": error}
    overrides = [{"operation": "linear", "call": 2, "bits": 8}]
    for record in records[4:6]:
        record["scheme"] = record["scheme"] | {"overrides": overrides}
    return [*records, ended]


def with_marks(records: list[Record], but: tuple[Path_, ...]) -> tuple[list[Record], list[Path_]]:
    """The records with a mark behind every text, but at some paths, and all paths that got one."""
    places = list(dict.fromkeys(path for record in records for path, value in walk(record) if isinstance(value, str)))
    marked = []
    for record in records:
        for number, path in enumerate(places):
            value = dict(walk(record)).get(path)
            if isinstance(value, str) and path not in but:
                record = put(record, path, value.replace("\n", " ") + MARK.format(number))
        # Names of fields are shown as well where a table lists them all.
        for field in ("recipe", "environment", "graph"):
            if record[field] is not None:
                record = put(record, (field, MARK.format(field)), MARK.format(f"in {field}"))
        marked.append(record)
    return marked, [path for path in places if path not in but]


class Structure(HTMLParser):
    """Counts tags with the names of their attributes, and collects all text.

    Of charts it only says which there are: their number depends on the room that a text takes.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[tuple[str, ...]] = Counter()
        self.of_charts: set[tuple[str, ...]] = set()
        self.in_chart = False
        self.comments: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_chart |= tag == "svg"
        found = (tag, *sorted(name for name, _ in attrs))
        if self.in_chart:
            self.of_charts.add(found)
        else:
            self.tags[found] += 1

    def handle_endtag(self, tag: str) -> None:
        self.in_chart &= tag != "svg"

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


# A status decides which runs count, a device which columns there are, the scheme's name which row is the reference.
STEERING: tuple[Path_, ...] = (("status",), ("environment", "device"))
NAMES: tuple[Path_, ...] = (*STEERING, ("scheme", "name"), ("recipe", "sampler"))


@pytest.mark.parametrize("but", [STEERING, NAMES])
def test_no_text_of_a_record_becomes_markup_of_the_page(but: tuple[Path_, ...], tmp_path: Path) -> None:
    records, places = with_marks(whole(), but)
    assert len(places) > 20, "every field with a text is tried"
    page = Structure(formats.report_html(located(tmp_path, records), "en"))
    usual = Structure(formats.report_html(located(tmp_path, tamed(records)), "en"))
    assert page.tags == usual.tags
    assert page.of_charts - {("path", "style")} == usual.of_charts - {("path", "style")}, "a space is no path"
    assert page.comments == usual.comments
    # What is text on the page has come through whole.
    assert "<img src=x onerror=alert(" in page.text


def tamed(records: list[Record]) -> list[Record]:
    """The same with a harmless mark in place of each."""

    def tame(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\"'><img src=x onerror=alert\((.*?)\)>.*?\]\]>", r"mark \1 /x", value)
        if isinstance(value, dict):
            return {tame(key): tame(each) for key, each in value.items()}
        return [tame(each) for each in value] if isinstance(value, list) else value

    tame_records: list[Record] = tame(records)
    return tame_records


def located(tmp_path: Path, records: list[Record]) -> Any:
    """Their comparisons, by way of a file, as `actbench report` has it."""
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return compare(read_located([path]))


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_no_text_of_a_record_steers_a_spreadsheet_or_a_terminal(tmp_path: Path) -> None:
    orders = (
        "=cmd|' /C calc'!A0",
        "\t=1+1",
        "\r=1+1",
        "+1",
        "-1",
        "@SUM(1)",
        "\x1b]0;title\x07",
        "\x9b31m",
        "a\u202eb",
    )
    for order in orders:
        records = [record | {"dataset": order, "model": order} for record in whole()]
        for record in records:
            record["environment"] = record["environment"] | {"device_name": order}
        comparisons = located(tmp_path, records)
        for line in csv.DictReader(io.StringIO(formats.report_csv(comparisons))):
            for text in line.values():
                # A number of our own may be negative.
                assert text[:1] not in ("=", "+", "@", "\t", "\r"), text
                assert not re.match(r"-(?!\d)", text), text
        for render in (formats.report_markdown, formats.report_latex, formats.report_json):
            assert not CONTROLS.search(render(comparisons, "en"))
    assert not CONTROLS.search(formats.report_html(comparisons, "en"))


BAD: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, 1e-308, 0.5, "", "x", "\x1b[31m", "a\nb", "\ud800", "x" * 10**5, [], {},
    [[]], [None], ["x"], {"a": 1}, {"name": 1}, [1e308, -1e308], [0], [10**400],
]  # fmt: skip
CASES = [(path, value) for record in (whole()[2], whole()[-1]) for path, _ in walk(record) for value in BAD]
RENDERERS: list[Callable[[Any], object]] = [
    lambda comparisons: formats.report_json(comparisons, "en"),
    lambda comparisons: formats.report_markdown(comparisons, "ja"),
    lambda comparisons: formats.report_latex(comparisons, "en"),
    lambda comparisons: formats.report_csv(comparisons),
    lambda comparisons: Console(file=io.StringIO(), width=80).print(formats.report_table(comparisons, "en")),
]


def try_all(records: list[Record], folder: Path) -> None:
    """Give the records to every verb that reads some; raises anything but an error of the package's own."""
    path = folder / "runs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    try:
        comparisons = compare(read_located([path]), across_machines=True)
        for render in RENDERERS:
            render(comparisons)
        text = formats.report_json(comparisons, "en")
        json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    except ActbenchError as error:
        assert len(str(error)) < 1000 or "x" * 1000 in str(error)  # noqa: PT017
    for pair in ((whole(), RecordFile(path)), (RecordFile(path), whole())):
        try:
            old, new = (each.read() if isinstance(each, RecordFile) else each for each in pair)
            choose_final(old)
            verdict = check_records(old, new, Settings(), allow_missing=True)
            Console(file=io.StringIO(), width=80).print(verdict_table(verdict))
            junit_xml(verdict)
            github_annotations(verdict)
            step_summary(verdict)
            json.dumps(verdict.as_json(), allow_nan=False)
        except ActbenchError as error:
            assert str(error)  # noqa: PT017


@settings(max_examples=40)
@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=2), st.booleans())
def test_a_wrong_value_in_any_field_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[Path_, Any]], everywhere: bool
) -> None:
    records = whole()
    for path, value in cases:
        for number in range(len(records)) if everywhere else (2,):
            if path in dict(walk(records[number])):
                records[number] = put(records[number], path, value)
    try_all(records, tmp_path_factory.mktemp("any"))


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True])
def test_every_wrong_value_in_every_field_is_shown_or_refused(everywhere: bool, tmp_path: Path) -> None:
    for path, value in CASES:
        records = whole()
        for number in range(len(records)) if everywhere else (2, len(records) - 1):
            if path in dict(walk(records[number])):
                records[number] = put(records[number], path, value)
        try:
            try_all(records, tmp_path)
        except Exception as error:
            raise AssertionError(f"{path} = {value!r:.50}") from error


def study_cases() -> list[tuple[Path_, Any]]:
    return [(path, value) for path, _ in walk(study().document) for value in BAD]


@pytest.mark.slow
@settings(max_examples=300)
@given(st.deferred(lambda: st.sampled_from(study_cases())))
def test_a_wrong_value_in_an_analysis_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Path_, Any]
) -> None:
    path, value = case
    try_study(put(study().document, path, value), tmp_path_factory.mktemp("any") / "analysis.json")


def test_a_whole_analysis_is_shown(tmp_path: Path) -> None:
    assert try_study(study().document, tmp_path / "analysis.json")


def try_study(document: dict[str, Any], path: Path) -> bool:
    """Whether an analysis is shown beside the records of its network, not refused in a sentence."""
    path.write_text(json.dumps(document))
    records = [Located(example_record(name), Source("runs.jsonl", 1)) for name in ("fp32", "exact")]
    records = [replace(each, record=each.record | {"recipe": study().document["recipe"]}) for each in records]
    try:
        comparisons = compare(records, studies=[read_study(path)])
        for render in RENDERERS:
            render(comparisons)
    except ActbenchError as error:
        assert str(error).endswith(".")  # noqa: PT017
        return False
    return True


def test_a_terminal_gets_no_orders_from_a_name() -> None:
    console = _PrintableConsole(file=io.StringIO(), width=200, force_terminal=True)
    name = "a\x1b]0;owned\x07\x9b31m[bold]\u202eb[/x].npz"
    (record,) = (each for each in whole()[2:3])
    record = record | {"dataset": name, "metrics": record["metrics"] | {"name": "[/red]"}}
    record["ledger"] = [record["ledger"][0] | {"operation": "[/x]", "dtype": "[/y]"}]
    console.print(Text(name), style="red")
    console.print(render_tables(summarise([record])))
    console.print(ledger_table(record))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[/x]" in text
    assert not CONTROLS.search(re.sub(r"\x1b\[[\d;]*m", "", text))

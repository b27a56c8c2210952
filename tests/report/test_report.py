from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType

from actbench.analysis import summarise
from actbench.graphs import catalogue
from actbench.report import ProgressListener, datasets_table, draw_tables, ledger_table, render_tables
from actbench.report.page import about, table_notes
from actbench.report.phrases import Sentence, say
from actbench.training import recipe_for
from tests.report.records import HOSTILE, compared
from tests.runs.example import example_job, example_record


def drawn(content: RenderableType, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(content)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def records(seeds: int = 1, **values: Any) -> list[dict[str, Any]]:
    large = {"saved_bytes": 823_700_000, "rss_peak_bytes": 1_500_000_000, **values}
    return [example_record(name, seed, **large) for seed in range(seeds) for name in ("fp32", "blockwise-vm")]


@pytest.mark.parametrize("seeds", [1, 10])
def test_the_comparison_fits_80_columns_and_cuts_nothing(seeds: int) -> None:
    text = drawn(render_tables(summarise(records(seeds))))
    assert "…" not in text
    for figure in ("785.5", "1,430.5", "100%", "1.00x", f"{seeds} ok", "50.00", "blockwise-vm"):
        assert figure in text


def test_the_picture_is_one_svg_that_shows_the_table_and_fetches_nothing() -> None:
    for dataset in ("cora", HOSTILE):
        tables = summarise(records(2, dataset=dataset))
        picture = draw_tables(tables)
        root = ElementTree.fromstring(picture)
        lines = [each.text.replace("\xa0", " ") for each in root.iter() if each.tag.endswith("}text") and each.text]
        for figure in ("785.5", "1,430.5", "blockwise-vm", "2 ok"):
            assert any(figure in line for line in lines)
        assert {each.tag.rpartition("}")[2] for each in root.iter()} == {
            "svg", "style", "defs", "clipPath", "rect", "text", "g", "circle",
        }  # fmt: skip
        assert "url(" not in picture.replace("url(#actbench-", "")
        assert picture == draw_tables(tables)


def test_one_seed_and_a_generated_graph_are_said_to_be_so() -> None:
    text = drawn(render_tables(summarise(records())), 200)
    assert "One seed is not a result" in text
    assert "generated graph" in text
    real = drawn(render_tables(summarise(records(2, graph={"synthetic": False}))), 200)
    assert "One seed" not in real
    assert "generated" not in real


def test_training_on_samples_is_said_to_be_so() -> None:
    sampled = recipe_for("arxiv", "sage", "saint").as_record()
    text = drawn(render_tables(summarise(records(2, recipe=sampled))), 300)
    assert "sage (GraphSAINT) 3 x 256" in text
    assert "the step that kept most" in text
    assert "GraphSAINT" not in drawn(render_tables(summarise(records(2))), 300)
    (comparison,) = compared([example_record(recipe=sampled)])
    assert say(about(comparison), "en").count("sage (GraphSAINT)") == 1
    assert Sentence("note.sampled") in table_notes(comparison)


def test_what_was_not_measured_is_left_blank() -> None:
    failed = example_record(
        "exact", status="oom", metrics=None, saved_bytes=None, rss_peak_bytes=None, epoch_seconds=[]
    )
    text = drawn(render_tables(summarise([example_record("fp32"), failed])))
    row = next(line for line in text.splitlines() if "exact" in line)
    assert row.split() == ["exact", *["–"] * 7, "1", "oom"]


def test_the_ledger_adds_up_in_view() -> None:
    ledger = [
        {"operation": "linear", "call": 1, "shape": [10, 4], "dtype": "float32", "saved_bytes": 160},
        {"operation": "linear", "call": 1, "shape": [8], "dtype": "uint8", "saved_bytes": 8},
    ]
    record = example_record(seed=3, ledger=ledger, saved_bytes=168, predicted_saved_bytes=168)
    text = drawn(ledger_table(record))
    # A run of several seeds prints one for each.
    assert text.splitlines()[0].rstrip().endswith("· seed 3")
    assert text.count("linear") == 1
    assert [line.split()[-1] for line in text.splitlines() if "all of forward" in line] == ["168", "168"]


def test_data_sets_fit_80_columns() -> None:
    from dataclasses import asdict

    listed = [asdict(entry) | {"present": True} for entry in catalogue()]
    text = drawn(datasets_table(listed, "/data"))
    assert "…" not in text
    for entry in catalogue():
        assert entry.name in text
        assert f"{entry.edges:,}" in text


def test_progress_without_a_terminal_is_a_line_a_run() -> None:
    stream = StringIO()
    with ProgressListener(Console(file=stream, width=200), 3) as listener:
        for scheme, record in (
            ("fp32", example_record("fp32")),
            (
                "exact",
                example_record(
                    "exact", status="oom", error={"epoch": 2, "type": "OutOfMemoryError", "message": "no room\nat all"}
                ),
            ),
        ):
            listener.started(example_job(scheme))
            listener.advanced(None, {"epoch": 1, "loss": 1.0, "valid": 0.5, "occupied_bytes": 2**20})
            listener.ended(example_job(scheme), record)
        listener.skipped(example_job("blockwise"), example_record("blockwise"))
        silent = {"epoch": 1, "type": "MemoryError", "message": ""}
        listener.started(example_job())
        listener.ended(example_job(), example_record(status="oom", error=silent))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("[1/3] fp32 seed 0: test accuracy 50.00 %")
    assert "oom in epoch 2: OutOfMemoryError no room" in lines[1]
    assert "--fresh measures again" in lines[2]

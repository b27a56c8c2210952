import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from actbench.analysis.comparison import (
    Located,
    Source,
    bytes_by_kind,
    compare,
    paper_figures,
    pareto_front,
    read_located,
    resolve_reference,
)
from actbench.errors import OutputError, UsageError
from actbench.records import RecordFile
from tests.runs.example import ENVIRONMENT, example_record


def located(*records: dict[str, Any]) -> list[Located]:
    return [Located(record, Source("runs.jsonl", line)) for line, record in enumerate(records, start=1)]


def scored(scheme: str, seed: int, test: float, **values: Any) -> dict[str, Any]:
    metrics = {"train": 1.0, "valid": 1.0, "test": test, "name": "accuracy", "best_epoch": 1}
    return example_record(scheme, seed, metrics=metrics, **values)


def test_differences_are_paired_by_seed_and_the_reference_may_be_any_scheme() -> None:
    scores = {"fp32": (0.70, 0.75, 0.80), "exact": (0.69, 0.73, 0.77)}
    records = [scored(name, seed, test) for name, tests in scores.items() for seed, test in enumerate(tests)]
    (comparison,) = compare(located(*records))
    fp32, exact = comparison.rows
    assert fp32.difference is None
    assert exact.difference is not None
    assert exact.difference.mean == pytest.approx(-0.02)
    assert exact.difference.pairs == 3
    # Student's t of 2 degrees of freedom at 97.5 % is 4.3027; the differences scatter by 0.01.
    assert exact.difference.high == pytest.approx(-0.02 + 4.3027 * 0.01 / 3**0.5, abs=1e-6)
    (swapped,) = compare(located(*records), "exact")
    assert [row.is_reference for row in swapped.rows] == [False, True]
    assert swapped.rows[0].difference is not None
    assert swapped.rows[0].difference.mean == pytest.approx(0.02)
    assert swapped.rows[0].summary.saved_ratio == 1.0


def test_percentiles_are_of_the_epochs_after_warm_up() -> None:
    seconds = [50.0, 60.0, *(float(s) for s in range(1, 12))]
    (comparison,) = compare(located(scored("fp32", 0, 0.7, epoch_seconds=seconds, warmup_epochs=2)))
    (row,) = comparison.rows
    assert row.epoch_seconds == seconds[2:]
    # Eleven samples 1 … 11: the first and last tenth end at 2 and 10.
    assert row.epochs_per_second_low == pytest.approx(1 / 10)
    assert row.epochs_per_second_high == pytest.approx(1 / 2)
    assert row.summary.epochs_per_second == pytest.approx(1 / 6)


def test_every_peak_that_a_gpu_gives_is_there_with_its_ratio() -> None:
    environment = ENVIRONMENT | {"device": "cuda", "device_name": "a card", "cuda": "13.0"}
    peaks = {"peak_allocated_bytes": 100, "peak_reserved_bytes": 200, "nvml_peak_bytes": 400}
    half = {field: value // 2 for field, value in peaks.items()}
    (comparison,) = compare(
        located(
            scored("fp32", 0, 0.7, environment=environment, **peaks),
            scored("exact", 0, 0.7, environment=environment, **half),
        )
    )
    assert comparison.peaks == ("allocated", "reserved", "nvml")
    exact = comparison.rows[1]
    assert [exact.peaks[kind].ratio for kind in comparison.peaks] == [0.5, 0.5, 0.5]
    (on_a_cpu,) = compare(located(scored("fp32", 0, 0.7)))
    assert on_a_cpu.peaks == ("resident",)


def test_a_run_that_ended_early_is_a_row() -> None:
    oom = scored("exact", 0, 0.0) | {"status": "oom", "metrics": None, "epoch_seconds": [], "rss_peak_bytes": None}
    (comparison,) = compare(located(scored("fp32", 0, 0.7), oom))
    row = comparison.rows[1]
    assert row.summary.statuses == {"oom": 1}
    assert (row.difference, row.scores, row.curve, row.epoch_seconds) == (None, {}, None, [])


def test_bytes_by_kind_add_up_and_tell_metadata_apart() -> None:
    def entry(operation: str, dtype: str, saved: int) -> dict[str, Any]:
        return {"operation": operation, "call": 1, "shape": [1], "dtype": dtype, "saved_bytes": saved}

    ledger = [
        entry("batch_norm", "uint8", 70),
        entry("linear", "uint8", 20),
        entry("linear", "bfloat16", 4),
        entry("batch_norm", "bfloat16", 4),
        entry("gelu", "float32", 9),
    ]
    assert bytes_by_kind(example_record("exact", ledger=ledger)) == {
        "linear": 20, "batch_norm": 70, "metadata": 8, "other": 9,
    }  # fmt: skip
    # Without compression a bfloat16 tensor is an activation like any other.
    assert bytes_by_kind(example_record("fp32", ledger=ledger))["linear"] == 24
    assert bytes_by_kind(example_record("fp32")) == {}


def test_the_pareto_front() -> None:
    figures = {"fp32": (0.9, 100), "exact": (0.8, 10), "blockwise": (0.7, 9), "blockwise-vm": (0.75, 9)}
    worse = scored("blockwise:bits=4", 0, 0.79, saved_bytes=20)
    unknown = scored("blockwise:bits=8", 0, 0.99, saved_bytes=None)
    records = [scored(name, 0, test, saved_bytes=saved) for name, (test, saved) in figures.items()]
    (comparison,) = compare(located(*records, worse, unknown))
    assert [row.label for row in pareto_front(comparison.rows)] == ["blockwise-vm", "exact", "fp32"]


def test_learning_curves_are_means_with_their_spread() -> None:
    curves = ([0.1, 0.5], [0.3, 0.7])
    records = [scored("fp32", s, 0.7, curve={"loss": [], "valid": valid}) for s, valid in enumerate(curves)]
    (comparison,) = compare(located(*records))
    curve = comparison.rows[0].curve
    assert curve is not None
    assert curve.mean == pytest.approx([0.2, 0.6])
    assert curve.high == pytest.approx([0.2 + statistics.stdev([0.1, 0.3]), 0.6 + statistics.stdev([0.5, 0.7])])
    assert curve.seeds == 2


def papers_record(scheme: str, dataset: str = "ogbn-arxiv", **recipe: Any) -> dict[str, Any]:
    record = example_record(scheme, dataset=dataset)
    record["recipe"] = record["recipe"] | {"hidden": 128} | recipe
    return record


def test_the_papers_figures_stand_with_their_marks() -> None:
    figures = paper_figures(papers_record("exact"))
    assert figures is not None
    assert (figures.activation.value, figures.activation.mark) == (30.47, "raw")
    assert (figures.accuracy.value, figures.accuracy.std, figures.accuracy.mark) == (71.16, 0.21, "recall")
    assert (figures.epochs_per_second.value, figures.epochs_per_second.mark) == (10.03, "recall")
    fp32 = paper_figures(papers_record("fp32", "synthetic:arxiv"))
    assert fp32 is not None
    assert (fp32.activation.value, fp32.activation.mark) == (786.22, "calc")
    # 184 bytes a node against 4,864, with 0.69 MiB of labels in both: 30.41 / 786.22.
    assert figures.activation_ratio.value == pytest.approx((184 * 169_343 / 2**20 + 0.69) / 786.22, rel=0.005)
    vm = paper_figures(papers_record("blockwise-vm", "synthetic:arxiv@0.5"))
    assert vm is not None
    assert (vm.activation.mark, vm.accuracy.value, vm.epochs_per_second.value) == ("calc", 71.20, 9.16)


@pytest.mark.parametrize(
    "record",
    [
        papers_record("exact", "flickr"),
        papers_record("exact", hidden=256),
        papers_record("exact", layers=2),
        papers_record("exact", batch_norm=False),
        papers_record("exact", sampler="saint"),
        papers_record("exact", labels_as_input=True),
        papers_record("exact", input_dropout=0.5),
        papers_record("exact") | {"model": "gcn"},
        papers_record("blockwise:bits=4"),
        papers_record("blockwise:block=256"),
        papers_record("blockwise:projection=4"),
        papers_record("blockwise:dropout=seed"),
        papers_record("exact/linear1:bits=32"),
        papers_record("int8"),
        papers_record("bf16"),
        papers_record("checkpoint"),
        papers_record("offload"),
    ],
)
def test_what_the_papers_did_not_measure_has_no_figure_of_theirs(record: dict[str, Any]) -> None:
    assert paper_figures(record) is None


def test_records_of_different_machines_share_no_table_unless_asked() -> None:
    other = ENVIRONMENT | {"device_name": "another processor"}
    records = located(
        scored("fp32", 0, 0.7, saved_bytes=100),
        scored("exact", 0, 0.6, saved_bytes=10),
        scored("fp32", 0, 0.5, saved_bytes=50, environment=other),
        scored("exact", 0, 0.5, saved_bytes=10, environment=other),
    )
    with pytest.raises(UsageError, match=r"runs.jsonl:1 and runs.jsonl:3 \(device name a processor and another"):
        compare(records)
    (comparison,) = compare(records, across_machines=True)
    assert [row.label for row in comparison.rows] == ["fp32 [A]", "exact [A]", "fp32 [B]", "exact [B]"]
    # Each is compared with the reference on its own machine.
    assert [row.summary.saved_ratio for row in comparison.rows] == [1.0, 0.1, 1.0, 0.2]


def test_other_data_models_and_recipes_have_tables_of_their_own() -> None:
    recipe = example_record()["recipe"] | {"epochs": 9}
    records = located(example_record(), example_record(dataset="cora"), example_record(recipe=recipe))
    assert len(compare(records)) == 3


def test_the_last_record_of_a_run_that_stands_counts() -> None:
    old, new = scored("fp32", 0, 0.1), scored("fp32", 0, 0.9)
    killed = scored("fp32", 0, 0.0) | {"status": "killed", "metrics": None}
    (comparison,) = compare(located(old, new, killed))
    assert comparison.rows[0].scores == {0: 0.9}
    assert [source.line for source in comparison.superseded] == [1, 3]
    (first_killed,) = compare(located(killed, new))
    assert first_killed.rows[0].scores == {0: 0.9}


def test_a_row_names_its_records_lines_whatever_lies_between(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    lines = [json.dumps(example_record("fp32")), "", json.dumps(example_record("exact")), '{"schema_version":1,"sta']
    path.write_text("\n".join(lines))
    found = read_located([path, path])
    assert [str(each.source) for each in found] == [f"{path}:1", f"{path}:3"]
    (comparison,) = compare(found)
    assert [str(row.located[0].source) for row in comparison.rows] == [f"{path}:1", f"{path}:3"]


def test_characters_that_steer_a_terminal_do_not_come_in(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    RecordFile(path).append(example_record(dataset="a\x1b[31m\u202eb\ud800"))
    (found,) = read_located([path])
    assert found.record["dataset"] == "a\ufffd[31m\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", {"test": "high"}),
        ("metrics", None),
        ("epoch_seconds", [1.0, 0.0]),
        ("epoch_seconds", "fast"),
        ("saved_bytes", -1),
        ("rss_peak_bytes", 1.5),
        ("seed", "0"),
        ("ledger", [{"operation": "linear"}]),
        ("curve", None),
        ("recipe", {}),
        ("environment", {"device": "cpu"}),
        ("scheme", {"name": 3}),
        ("digest", 3),
        ("graph", {"nodes": "many"}),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "runs.jsonl"
    RecordFile(path).append(example_record())
    RecordFile(path).append(example_record(seed=1) | {field: value})
    with pytest.raises(OutputError, match=r"runs\.jsonl:2 has no usable|runs\.jsonl:2 is of a finished run"):
        read_located([path])


@pytest.mark.parametrize("content", [None, b"", b"\n\n"])
def test_an_absent_or_empty_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "runs.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match="name the --output of an `actbench run`"):
        read_located([path])


def test_the_reference_is_one_of_the_schemes_measured() -> None:
    records = located(example_record("fp32"), example_record("blockwise"))
    assert resolve_reference(None, records) == "fp32"
    assert resolve_reference("blockwise:block=64r", records) == "blockwise"
    with pytest.raises(UsageError, match="exact is in none of the records: they hold fp32, blockwise"):
        resolve_reference("exact", records)
    with pytest.raises(UsageError, match="did you mean 'exact'"):
        resolve_reference("exat", records)


def test_attentions_bytes_are_a_kind_of_their_own() -> None:
    entries = [("edge_softmax", "float32"), ("aggregate", "uint8"), ("aggregate", "bfloat16"), ("linear", "uint8")]
    ledger = [{"operation": o, "call": 1, "shape": [9], "dtype": d, "saved_bytes": 9} for o, d in entries]
    assert bytes_by_kind(example_record("exact", ledger=ledger)) == {"linear": 9, "attention": 18, "metadata": 9}

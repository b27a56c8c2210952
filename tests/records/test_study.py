import json
from pathlib import Path
from typing import Any

import pytest
import torch

from actbench.analysis.comparison import compare
from actbench.errors import OutputError, UsageError
from actbench.records.study import is_study, match_studies, read_study, study_key
from actbench.scheme import Scheme
from tests.analysis.test_comparison import located
from tests.by_hand.operations import operations, predict_saved_bytes
from tests.report.records import measured
from tests.runs.example import example_record
from tests.studies.example import SCHEMES, job, study


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def changed(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy of `document` with `value` at `place`."""
    if not place:
        return value
    copy = list(document) if isinstance(document, list) else dict(document)
    copy[place[0]] = changed(document[place[0]], place[1:], value)  # type: ignore[index]
    return copy


def test_a_study_holds_every_scheme_with_bytes_as_predicted_noise_and_calls() -> None:
    document = study().document
    recipe, graph = job().recipe, document["graph"]
    trace = operations(recipe.architecture, graph["nodes"], graph["features"], graph["classes"])
    for name, each in zip(SCHEMES, document["schemes"], strict=True):
        scheme = Scheme.parse(name)
        assert each["scheme"] == scheme.as_record()
        assert each["saved_bytes"] == predict_saved_bytes(trace, scheme, "cpu")
        assert len(each["calls"]) == (0 if name == "fp32" else 8)
        assert {tensor["parameter"] for tensor in each["noise"]["tensors"]} >= {"convs.0.lin_l.weight", "norms.1.bias"}
    fp32, exact, blockwise, vm = (each["noise"]["total"]["mean"] for each in document["schemes"])
    assert fp32 == 0 < min(exact, blockwise, vm)
    assert document["schemes"][2]["calls"] == document["schemes"][3]["calls"]
    assert document["graph"]["synthetic"]


def test_a_study_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path / "analysis.json", study().document)
    assert is_study(path)
    assert read_study(path).document == json.loads(path.read_text())
    assert read_study(path).file == str(path)


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version":1,"kind":"analysis"}'[:20], "hello", "[1]"])
def test_other_files_are_no_studies(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other"
    path.write_text(content)
    assert not is_study(path)
    assert not is_study(tmp_path)
    assert not is_study(tmp_path / "none")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("study_version",), 2),
        (("recipe", "hidden"), None),
        (("graph",), []),
        (("schemes",), None),
        (("schemes", 0, "scheme"), "exact"),
        (("schemes", 0, "noise", "total", "mean"), "1"),
        (("schemes", 0, "noise", "own"), {"mean": 1}),
        (("schemes", 1, "noise", "tensors", 0, "parameter"), 3),
        (("schemes", 1, "calls", 0, "bits"), 3),
        (("schemes", 1, "calls", 0, "levels"), {"uniform": {}}),
        (("schemes", 1, "calls", 0, "histogram", 2), 10**400),
        (("schemes", 1, "calls", 0, "blocks", 0, "error"), {}),
        (("schemes", 1, "calls", 0, "blocks"), []),
        (("schemes", 1, "calls", 0, "blocks"), study().document["schemes"][1]["calls"][0]["blocks"][:3]),
        (("schemes", 1, "calls", 0, "histogram"), []),
        (("schemes", 1, "calls", 0, "histogram"), [0, 0]),
        (("schemes", 1, "calls", 0, "divergence"), {}),
        (("schemes", 1, "calls", 0, "block_length"), 0),
        (("schemes", 1, "calls", 0, "block_length"), 1.5),
        (("schemes", 1, "calls", 0, "block_length"), 2),
        (("schemes", 1, "calls", 0, "rms"), 0),
        (("schemes", 1, "noise", "total", "standard_error"), -1),
    ],
)
def test_a_damaged_study_is_one_sentence_that_names_the_field(
    tmp_path: Path, place: tuple[str | int, ...], value: Any
) -> None:
    path = written(tmp_path / "analysis.json", changed(study().document, place, value))
    with pytest.raises(OutputError, match=rf"no usable '{place[0]}': make it again with `actbench analyze`"):
        read_study(path)


def test_half_a_study_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(study().document)[:5000])
    assert is_study(path)
    with pytest.raises(OutputError, match="is no whole analysis"):
        read_study(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_no_json_knows_are_none(tmp_path: Path, number: str) -> None:
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(study().document | {"wall_seconds": "HERE"}).replace('"HERE"', number))
    with pytest.raises(OutputError, match="is no whole analysis"):
        read_study(path)


def test_names_cannot_move_a_terminals_cursor(tmp_path: Path) -> None:
    path = written(tmp_path / "analysis.json", study().document | {"dataset": "\x1b[2J"})
    assert "\x1b" not in read_study(path).document["dataset"]


def test_a_study_belongs_to_records_of_the_same_network_however_long_they_train() -> None:
    (comparison,) = compare(located(*measured()), studies=[study("one.json"), study("two.json")])
    by_scheme = {row.summary.scheme: row.gradient_noise for row in comparison.rows}
    exact = study().noise_of("exact")
    assert exact is not None
    assert by_scheme == {"fp32": 0, "exact": exact["total"]["mean"], "blockwise": by_scheme["blockwise"]}
    assert [each.file for each in comparison.studies] == ["one.json", "two.json"]
    (own,) = compare(located(*measured(gradient_noise=0.5)), studies=[study()])
    assert [row.gradient_noise for row in own.rows] == [0.5] * 3


def test_the_last_study_of_a_scheme_counts() -> None:
    schemes = [study().document["schemes"][1]]
    later = study("later.json", schemes=changed(schemes, (0, "noise", "total", "mean"), 7.0))
    (comparison,) = compare(located(*measured()), studies=[study(), later])
    assert [row.gradient_noise for row in comparison.rows][:2] == [0, 7.0]


@pytest.mark.parametrize(
    "changes", [{"dataset": "cora"}, {"model": "gcn"}, {"digest": "1"}, {"recipe": {"layers": 9, "hidden": 1}}]
)
def test_a_study_of_another_network_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="name records of the same, or leave it out"):
        match_studies([study(**changes)], [study_key(example_record())])


def test_equal_jobs_give_equal_studies_and_the_users_generator_is_only_seeded() -> None:
    from actbench.studies.study import run_study

    torch.manual_seed(99)
    again = run_study(job(), [Scheme.parse("exact")], 3)
    assert again["schemes"][0] == study().document["schemes"][1]

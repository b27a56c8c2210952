import statistics

import pytest

from actbench.analysis import summarise
from tests.runs.example import ENVIRONMENT, example_record


def scored(scheme: str, seed: int, test: float, **values: object) -> dict[str, object]:
    metrics = {"train": 1.0, "valid": 1.0, "test": test, "name": "accuracy", "best_epoch": 1}
    return example_record(scheme, seed, metrics=metrics, **values)


def test_figures_of_a_scheme_stand_beside_the_references() -> None:
    records = [
        scored("fp32", 0, 0.70, saved_bytes=1000, rss_peak_bytes=800, epoch_seconds=[9.0, 9.0, 0.1, 0.2, 0.3]),
        scored("exact", 0, 0.60, saved_bytes=40, rss_peak_bytes=600, epoch_seconds=[9.0, 9.0, 0.4]),
        scored("exact", 1, 0.64, saved_bytes=40, rss_peak_bytes=700, epoch_seconds=[9.0, 9.0, 0.4, 0.5]),
    ]
    for record in records:
        record["warmup_epochs"] = 2
    (table,) = summarise(records)
    fp32, exact = table.rows
    assert (fp32.score_mean, fp32.score_std, fp32.saved_ratio, fp32.speed_ratio) == (0.70, None, 1.0, 1.0)
    assert fp32.epochs_per_second == pytest.approx(5)
    assert exact.score_mean == pytest.approx(0.62)
    assert exact.score_std == pytest.approx(statistics.stdev([0.60, 0.64]))
    assert exact.saved_ratio == pytest.approx(0.04)
    assert exact.peak_bytes == 650
    assert exact.peak_ratio == pytest.approx(650 / 800)
    # The warm-up's nine seconds play no part.
    assert exact.epochs_per_second == pytest.approx(1 / 0.4)
    assert exact.speed_ratio == pytest.approx(0.2 / 0.4)
    assert (table.seeds, table.synthetic, table.peak) == (2, True, "resident")


def test_a_run_that_ended_early_is_a_row_without_a_score() -> None:
    oom = example_record("exact", status="oom", metrics=None, epoch_seconds=[], rss_peak_bytes=None, graph=None)
    (table,) = summarise([scored("fp32", 0, 0.7), oom])
    row = table.rows[1]
    assert row.statuses == {"oom": 1}
    assert (row.score_mean, row.epochs_per_second, row.peak_bytes) == (None, None, None)
    assert row.saved_ratio == 1.0


def test_without_the_reference_there_are_no_ratios() -> None:
    (table,) = summarise([scored("exact", 0, 0.7)])
    assert table.rows[0].saved_ratio is None
    assert table.rows[0].speed_ratio is None


def test_what_is_not_comparable_is_not_in_one_table() -> None:
    other_machine = scored("fp32", 0, 0.7)
    other_machine["environment"] = ENVIRONMENT | {"device_name": "another"}
    other_recipe = scored("fp32", 0, 0.7)
    other_recipe["recipe"] = dict(other_recipe["recipe"], epochs=9)  # type: ignore[call-overload]
    assert len(summarise([scored("fp32", 0, 0.7), other_machine, other_recipe])) == 3

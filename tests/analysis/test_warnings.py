from typing import Any

import pytest

from actbench.analysis.comparison import compare
from actbench.analysis.warnings import Caution, find_cautions
from tests.analysis.test_comparison import located, scored
from tests.runs.example import ENVIRONMENT

STEADY = [0.5] * 30


def cautions(*records: dict[str, Any], **options: Any) -> dict[str, Caution]:
    (comparison,) = compare(located(*records), **options)
    return {caution.kind: caution for caution in find_cautions(comparison)}


def pair(**values: Any) -> list[dict[str, Any]]:
    """Two schemes, three seeds, clearly apart and steady: nothing to warn of."""
    return [
        scored(name, seed, score - seed / 1000, **({"epoch_seconds": STEADY} | values))
        for name, score in (("fp32", 0.8), ("exact", 0.7))
        for seed in range(3)
    ]


def test_clean_records_raise_none() -> None:
    assert cautions(*pair()) == {}


def test_one_seed() -> None:
    found = cautions(*pair()[:4])
    assert found["one_seed"].schemes == ("exact",)


def test_seeds_that_do_not_meet() -> None:
    records = pair()[:3] + [scored("exact", seed, 0.7, epoch_seconds=STEADY) for seed in (7, 8)]
    assert cautions(*records)["unpaired"].schemes == ("exact",)


def test_means_over_different_seeds() -> None:
    assert cautions(*pair()[:-1])["seeds_differ"].schemes == ("exact",)
    assert cautions(*pair()[1:])["seeds_differ"].schemes == ("exact",)
    assert "unpaired" not in cautions(*pair()[1:])


def test_a_difference_that_is_noise() -> None:
    records = pair()[:3] + [scored("exact", s, t, epoch_seconds=STEADY) for s, t in enumerate((0.7, 0.9, 0.8))]
    assert cautions(*records)["overlap"].schemes == ("exact",)


def test_no_reference() -> None:
    assert cautions(*pair()[3:])["no_reference"].schemes == ("exact",)


@pytest.mark.parametrize("status", ["oom", "killed", "error"])
def test_a_run_that_ended_early(status: str) -> None:
    ended = scored("exact", 3, 0.0) | {"status": status, "metrics": None, "epoch_seconds": []}
    assert cautions(*pair(), ended)["unfinished"].figures == {"status": status, "runs": 1}


def test_warm_up_that_is_still_visible() -> None:
    late = [0.9, 0.8, 0.7, *STEADY]
    found = cautions(*pair(epoch_seconds=late, warmup_epochs=0))
    assert found["warm_up"].figures == {"slow": 3, "runs": 3}
    assert "warm_up" not in cautions(*pair(epoch_seconds=late, warmup_epochs=3))
    # One run of three may be chance.
    assert "warm_up" not in cautions(scored("fp32", 5, 0.8, epoch_seconds=late, warmup_epochs=0), *pair())


def test_too_few_epochs_to_time() -> None:
    assert cautions(*pair(epoch_seconds=[0.5, 0.5, 0.5]))["few_epochs"].figures == {"epochs": 3}


def test_times_that_scatter() -> None:
    found = cautions(*pair(epoch_seconds=[0.5, 0.5, 1.0] * 10))
    assert found["scatter"].figures["factor"] == pytest.approx(2)


def test_another_process_on_the_gpu() -> None:
    assert cautions(*pair(other_gpu_processes=1))["neighbours"].schemes == ("fp32", "exact")
    assert "neighbours" not in cautions(*pair(other_gpu_processes=0))


def test_machines_and_commits() -> None:
    other = ENVIRONMENT | {"device_name": "another"}
    found = cautions(*pair(), *pair(environment=other), across_machines=True)
    assert found["machines"].figures == {"machines": "A: a processor; B: another"}
    records = [*pair()[:3], *pair(environment=ENVIRONMENT | {"commit": "1"})[3:5]]
    records.append(pair(environment=ENVIRONMENT | {"commit": "2"})[5])
    assert cautions(*records)["commits"].figures == {"commits": "1, 2"}


def test_records_that_were_measured_again() -> None:
    found = cautions(*pair(), pair()[0])
    assert found["superseded"].figures == {"records": 1, "sources": "runs.jsonl:1"}

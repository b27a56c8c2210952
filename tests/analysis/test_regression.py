"""What a check catches, and that it leaves alone what has not changed."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actbench.analysis.limits import Limits, Settings, read_settings
from actbench.analysis.regression import (
    Finding,
    Verdict,
    _holm,
    _Prior,
    _shifts,
    check_records,
    choose_final,
)
from actbench.analysis.warnings import FEW_EPOCHS
from actbench.errors import UsageError
from actbench.quant.cpu import backend as cpu
from actbench.quant.layout import BlockCode
from actbench.runs import measure as measure_module
from actbench.runs.measure import measure
from actbench.training import Trainer
from tests.runs.example import ENVIRONMENT, example_job, example_record

Records = list[dict[str, Any]]
SCHEMES = ("fp32", "exact", "blockwise", "blockwise-vm")
EPOCHS = 30


def example(scheme: str = "fp32", seed: int = 0, **values: Any) -> dict[str, Any]:
    """A finished run with a curve."""
    curve = {"loss": [3.0, 2.0, 1.5], "valid": [0.1, 0.2, 0.3]}
    return example_record(scheme, seed, **{"curve": curve, "epoch_seconds": [9.0, 9.0, *[0.1] * FEW_EPOCHS], **values})


def scored(test: float) -> dict[str, Any]:
    return {"train": 1.0, "valid": 1.0, "test": test, "name": "accuracy", "best_epoch": 1}


def found(verdict: Verdict, figure: str, scheme: str = "fp32") -> Finding:
    (finding,) = [
        each for row in verdict.rows if row.scheme == scheme for each in row.findings if each.figure == figure
    ]
    return finding


class Machine:
    """Runs on a shared machine: it is faster or slower for a day, from run to run, from epoch to epoch, or busy.

    Each deviation is of a logarithm. Runs that follow one another resemble each other, epochs too; one epoch in thirty
    meets another process and takes half as long again or twice as long. Loading and evaluation, the rest of a run,
    share the day's and the run's luck and have some of their own.
    """

    def __init__(self, seed: int, day: float = 0.03, run: float = 0.03, own: float = 0.035, rest: float = 0.04) -> None:
        self.draw = np.random.default_rng(seed)
        self.day, self.run, self.own, self.rest = day, run, own, rest

    def measure(
        self, seeds: int, slower: dict[str, float] | None = None, day: float | None = None, rest_slower: float = 1.0
    ) -> Records:
        """Records of every scheme; `slower` is the factor of some schemes' epochs, `day` that of the day itself."""
        today = self.draw.normal(0, self.day) if day is None else math.log(day)
        luck, records = 0.0, []
        for seed in range(seeds):
            for scheme in SCHEMES:
                luck = 0.8 * luck + 0.6 * self.draw.normal(0, self.run)
                speed = math.exp(today + luck)
                epochs = 0.1 * speed * math.exp(self.draw.normal(0, self.own)) * self._epochs()
                epochs *= (slower or {}).get(scheme, 1.0)
                rest = 2.5 * speed * rest_slower * math.exp(self.draw.normal(0, self.rest))
                seconds = epochs.tolist()
                records.append(example(scheme, seed, epoch_seconds=seconds, wall_seconds=sum(seconds) + rest))
        return records

    def _epochs(self) -> Any:
        noise = np.zeros(EPOCHS)
        for i in range(1, EPOCHS):
            noise[i] = 0.7 * noise[i - 1] + self.draw.normal(0, 0.03)
        busy = np.where(self.draw.random(EPOCHS) < 1 / 30, self.draw.uniform(1.5, 2, EPOCHS), 1)
        return np.exp(noise) * busy


EVERYWHERE = dict.fromkeys(SCHEMES, 1.15)


def count_alarms(repetitions: int, machine: Machine, seeds: int, slower: dict[str, float] | None = None) -> int:
    alarms = 0
    for _ in range(repetitions):
        alarms += bool(check_records(machine.measure(seeds), machine.measure(seeds, slower)).failures)
    return alarms


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_fifty_repetitions_of_an_unchanged_run_are_no_alarm(seeds: int) -> None:
    """Four rows each, so two hundred chances; drawn anew for every repetition, baseline included."""
    assert count_alarms(50, Machine(seeds), seeds) == 0


def test_a_machine_that_is_busy_all_day_is_no_alarm() -> None:
    """Days differ by 10 % and runs by 12 %: the spread of two months of records on two shared cores."""
    assert count_alarms(50, Machine(5, day=0.10, run=0.12, own=0.05), 10) == 0


@pytest.mark.parametrize("slower", [EVERYWHERE, {"exact": 1.15}], ids=["every scheme", "one scheme"])
def test_a_sleep_of_15_percent_is_caught(slower: dict[str, float]) -> None:
    """Between 10 % and 15 % are 4.5 hundredths of a logarithm: nearly always where a machine is as quiet as ours."""
    quiet = Machine(2, day=0.01, run=0.02, own=0.02, rest=0.02)
    assert count_alarms(20, quiet, 10, slower) >= 19


def test_three_seeds_on_a_quiet_machine_catch_a_sleep_in_every_scheme() -> None:
    assert count_alarms(20, Machine(3, day=0.01, run=0.02, own=0.02, rest=0.02), 3, EVERYWHERE) >= 17


def test_one_run_on_each_side_shows_only_what_is_gross() -> None:
    machine = Machine(4)
    base = machine.measure(1)
    verdict = check_records(base, machine.measure(1, EVERYWHERE))
    assert not verdict.failures
    assert check_records(base, machine.measure(1, dict.fromkeys(SCHEMES, 2.0))).failures


def test_a_slower_machine_is_told_from_slower_code() -> None:
    machine = Machine(6)
    base, today = machine.measure(10, day=1.0), machine.measure(10, day=1.25)
    verdict = check_records(base, today)
    assert not verdict.failures
    finding = found(verdict, "time", "exact")
    assert (finding.outcome, finding.why) == ("unclear", "machine")
    assert finding.rest_change == pytest.approx(0.25, abs=0.1)
    on_ones_own_machine = Settings(Limits(control=False))
    assert check_records(base, today, on_ones_own_machine).failures


def test_faster_loading_does_not_make_an_epoch_slower() -> None:
    machine = Machine(7)
    assert not check_records(machine.measure(10, day=1.0), machine.measure(10, day=1.0, rest_slower=0.5)).failures


def test_a_rest_that_is_mostly_chance_is_no_control() -> None:
    """A data set that is read from a cold disk now and then must not hide a slowdown."""
    machine = Machine(8, day=0.0, run=0.005, own=0.005, rest=0.8)
    verdict = check_records(machine.measure(10), machine.measure(10, EVERYWHERE))
    assert found(verdict, "time").outcome == "regression"
    assert found(verdict, "time").rest_change is None


def test_what_became_faster_is_named() -> None:
    machine = Machine(9, day=0.0)
    verdict = check_records(machine.measure(10), machine.measure(10, {"exact": 0.7}))
    assert not verdict.failures
    assert found(verdict, "time", "exact").outcome == "improvement"


def test_slower_within_what_is_allowed_is_no_regression() -> None:
    machine = Machine(10, day=0.0, run=0.0, own=0.001, rest=0.001)
    assert not check_records(machine.measure(10), machine.measure(10, dict.fromkeys(SCHEMES, 1.05))).failures


def test_holm_against_rs_p_adjust() -> None:
    adjusted = _holm(dict(enumerate([0.01, 0.04, 0.03, 0.005])))
    assert [adjusted[i] for i in range(4)] == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_without_a_prior_the_shift_is_students_pooled_test() -> None:
    from scipy.stats import ttest_ind

    old, new = [1.0, 1.2, 0.9, 1.1], [1.3, 1.2, 1.6]
    shift = _shifts({0: (old, new)}, _Prior(0.1, 0))[0]
    assert shift.p_value(1) == pytest.approx(ttest_ind(new, old, alternative="greater").pvalue)
    assert shift.estimate == pytest.approx(statistics.fmean(new) - statistics.fmean(old))


def trained(scheme: str, seeds: int = 3) -> Records:
    """Real runs on a graph of 339 nodes, in this process."""
    records = [measure(example_job(scheme, seed, epochs=20), lambda state: None) for seed in range(seeds)]
    assert {record["status"] for record in records} == {"ok"}
    return [record | {"wall_seconds": None, "epoch_seconds": [0.1] * 20} for record in records]


def test_a_scheme_that_keeps_a_hundredth_more_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    base = trained("exact", 1)
    assert not check_records(base, trained("exact", 1)).failures
    quantize = cpu.quantize

    def keep_more(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        codes, *rest = quantize(*arguments, **options)
        return torch.cat([codes, codes[: -(-len(codes) // 64)]]), *rest

    monkeypatch.setattr(cpu, "quantize", keep_more)
    finding = found(check_records(base, trained("exact", 1)), "saved_bytes", "exact")
    assert finding.outcome == "regression"
    assert finding.change is not None
    assert 0.005 < finding.change < 0.02


@pytest.fixture
def tell_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only a training step moves: by 100 ms with a little noise, times the factor that is given."""
    now, factor = [0.0], [1.0]
    draw = np.random.default_rng(0)
    step = Trainer.step

    def slow_step(self: Trainer, *around: Any) -> float:
        now[0] += 0.1 * factor[0] * math.exp(draw.normal(0, 0.03))
        return step(self, *around)

    class MockClock:
        def __init__(self, device: torch.device) -> None:
            pass

        def read(self) -> float:
            return now[0]

    monkeypatch.setattr(Trainer, "step", slow_step)
    monkeypatch.setattr(measure_module, "Clock", MockClock)
    return lambda value: factor.__setitem__(0, value)


def test_a_sleep_in_the_training_loop_is_caught(tell_time: Callable[[float], None]) -> None:
    def run() -> Records:
        return [
            measure(example_job(scheme, seed, epochs=12), lambda state: None)
            for seed in range(3)
            for scheme in ("fp32", "blockwise")
        ]

    base, same = run(), run()
    assert not check_records(base, same).failures
    tell_time(1.15)
    verdict = check_records(base, run())
    assert {finding.figure for _, finding in verdict.failures} == {"time"}


@pytest.mark.parametrize("scheme", ["exact", "blockwise", "blockwise-vm"])
def test_a_quantizer_biased_by_half_a_level_is_caught(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    base = trained(scheme)
    same = check_records(base, trained(scheme))
    assert not same.failures
    assert (found(same, "score", scheme).change, found(same, "loss", scheme).departed) == (0.0, None)
    dequantize = cpu.dequantize

    def biased(codes: Tensor, minimum: Tensor, scale: Tensor, numel: int, code: BlockCode, *rest: Any) -> Tensor:
        values = dequantize(codes, minimum, scale, numel, code, *rest)
        return values + (0.5 * scale.float()).repeat_interleave(code.block_length)[:numel].to(values.dtype)

    monkeypatch.setattr(cpu, "dequantize", biased)
    verdict = check_records(base, trained(scheme))
    finding = found(verdict, "loss", scheme)
    assert finding.outcome == "regression"
    assert finding.departed == 2
    assert finding.low is not None
    assert finding.low > 0


def test_noise_that_is_drawn_anew_is_named_and_no_regression() -> None:
    draw = np.random.default_rng(1)
    base, new = (
        [
            example(
                seed=seed,
                metrics=scored(0.7 + draw.normal(0, 0.007)),
                curve={"loss": [3.0, *(2 * np.exp(draw.normal(0, 0.005, 2)))], "valid": [0.1] * 3},
            )
            for seed in range(5)
        ]
        for _ in range(2)
    )
    verdict = check_records(base, new)
    assert not verdict.failures
    assert found(verdict, "loss").departed == 2


def test_exact_loss_allows_no_other_curve(tmp_path: Path) -> None:
    (tmp_path / "check.toml").write_text("[check]\nexact_loss = true\n")
    other = example(curve={"loss": [3.0, 1.99, 1.5], "valid": [0.1] * 3})
    assert not check_records([example()], [other]).failures
    verdict = check_records([example()], [other], read_settings(tmp_path / "check.toml"))
    assert found(verdict, "loss").why == "departed"


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([-0.02, -0.02, -0.02], "regression"),
        ([-0.03, -0.02, -0.025, -0.03], "regression"),
        ([-0.005, -0.005, -0.005], "pass"),
        ([-0.06, 0.02, 0.0], "unclear"),
        ([-0.02], "regression"),
        ([-0.01], "pass"),
        ([0.0, 0.0], "pass"),
        ([0.02, 0.03, 0.025], "improvement"),
    ],
)
def test_scores_are_judged_by_the_interval_of_paired_seeds(differences: list[float], outcome: str) -> None:
    base = [example(seed=seed, metrics=scored(0.5 + seed / 10)) for seed in range(len(differences))]
    new = [
        example(seed=seed, metrics=scored(0.5 + seed / 10 + difference)) for seed, difference in enumerate(differences)
    ]
    verdict = check_records(base, new)
    assert found(verdict, "score").outcome == outcome
    assert bool(verdict.failures) == (outcome == "regression")


@pytest.mark.parametrize(
    ("factor", "outcome"),
    [(1.001, "pass"), (1.0011, "regression"), (1.01, "regression"), (0.999, "pass"), (0.99, "improvement")],
)
@pytest.mark.parametrize("name", ["saved_bytes", "predicted_saved_bytes"])
def test_bytes_are_exact(name: str, factor: float, outcome: str) -> None:
    verdict = check_records([example() | {name: 10**6}], [example() | {name: round(factor * 10**6)}])
    assert found(verdict, name).outcome == outcome


@pytest.mark.parametrize(("factor", "outcome"), [(1.03, "pass"), (1.08, "regression"), (0.8, "improvement")])
@pytest.mark.parametrize("seeds", [1, 3])
def test_peaks_may_vary(factor: float, outcome: str, seeds: int) -> None:
    base = [example(seed=seed, rss_peak_bytes=500 * 10**6 + seed) for seed in range(seeds)]
    new = [record | {"rss_peak_bytes": int(factor * record["rss_peak_bytes"])} for record in base]
    assert found(check_records(base, new), "peak").outcome == outcome


def test_a_peak_on_cuda_is_the_allocators() -> None:
    there = ENVIRONMENT | {"device": "cuda"}
    base = example(environment=there, peak_allocated_bytes=10**9, rss_peak_bytes=10**9)
    new = base | {"peak_allocated_bytes": 1_060_000_000}
    assert found(check_records([base], [new]), "peak").outcome == "regression"
    assert not check_records([base], [base | {"rss_peak_bytes": 2 * 10**9}]).failures


@pytest.mark.parametrize("status", ["oom", "error", "killed"])
def test_a_run_that_ended_must_still_end(status: str) -> None:
    failed = example(
        seed=1, status=status, metrics=None, error={"type": "MemoryError", "message": "no room\nat all", "epoch": 2}
    )
    base = [example(seed=0), example(seed=1)]
    finding = found(check_records(base, [base[0], failed]), "status")
    assert finding.outcome == "regression"
    assert finding.detail == f"{status} with seed 1, MemoryError: no room"
    verdict = check_records([base[0], example(seed=1, status="oom", metrics=None)], base)
    assert found(verdict, "status").outcome == "improvement"
    assert not verdict.failures


def test_a_figure_that_vanished_is_a_regression() -> None:
    gone = example(saved_bytes=None, rss_peak_bytes=None, metrics=None, epoch_seconds=[], curve=None)
    verdict = check_records([example()], [gone])
    assert {finding.figure for _, finding in verdict.failures} == {"saved_bytes", "peak", "score", "time", "loss"}
    assert {finding.why for _, finding in verdict.failures} == {"unmeasured"}
    assert not check_records([gone, example("exact")], [example(), example("exact")]).failures


def test_a_few_epochs_are_no_measurement_of_time() -> None:
    """One epoch that met a hiccup is no regression, nor is one of ten the whole of a run."""
    for epochs, judged in ((FEW_EPOCHS - 1, False), (FEW_EPOCHS, True)):
        base, slow = (
            [example(seed=seed, epoch_seconds=[9.0, 9.0, *[each] * epochs]) for seed in range(5)] for each in (0.1, 0.2)
        )
        verdict = check_records(base, slow)
        assert {finding.figure for _, finding in verdict.failures} == ({"time"} if judged else set())


def test_what_is_missing_fails_unless_allowed_and_what_is_new_never_does() -> None:
    base = [example("fp32", 0), example("fp32", 1), example("exact", 0)]
    new = [example("fp32", 0), example("blockwise", 0)]
    verdict = check_records(base, new)
    assert found(verdict, "seeds").detail == "1"
    assert found(verdict, "row", "exact").outcome == "missing"
    assert found(verdict, "row", "blockwise").outcome == "new"
    assert len(verdict.failures) == 2
    assert not check_records(base, new, allow_missing=True).failures
    for unrelated in (example("blockwise", 0), example("fp32", 7)):
        assert check_records(base, [unrelated]).failures
        with pytest.raises(UsageError, match="nothing is compared"):
            check_records(base, [unrelated], allow_missing=True)


def test_the_last_record_counts() -> None:
    worse = example(saved_bytes=2000)
    assert not check_records([worse, example()], [worse, example()]).failures
    assert check_records([example()], [example(), worse]).failures
    # A baseline keeps what ended; what a new run came to is its last record, however that ended.
    killed = example(status="killed", metrics=None)
    assert not check_records([example(), killed], [example()]).failures
    assert check_records([example()], [example(), killed]).failures


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"environment": ENVIRONMENT | {"device": "cuda"}}, "device is cpu in the baseline and cuda now"),
        ({"environment": ENVIRONMENT | {"device_name": "another"}}, "device_name is a processor"),
        ({"environment": ENVIRONMENT | {"threads": 4}}, "threads is 2 in the baseline and 4 now"),
        ({"environment": ENVIRONMENT | {"versions": {"actbench": "0.1.0", "torch": "2.9.0"}}}, "torch is 2.13.0"),
        ({"digest": "abc"}, "digest of the data is None in the baseline and abc now"),
        ({"recipe": example()["recipe"] | {"epochs": 9}}, "epochs is 3 in the baseline and 9 now"),
        ({"environment": {"device": "cpu"}}, "no usable environment.device_name"),
        ({"scheme": {}}, "no usable scheme.name"),
        ({"digest": [1]}, "no usable digest"),
        ({"seed": None}, "no usable seed"),
    ],
)
def test_what_differs_in_more_than_the_code_cannot_be_compared(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        check_records([example()], [example() | changes])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_record_of_little_is_compared_in_what_it_has() -> None:
    odd = example() | {"epoch_seconds": "abc", "curve": {"loss": 5}, "metrics": [1], "warmup_epochs": -3, "recipe": {}}
    (row,) = check_records([odd], [odd]).rows
    deterministic = ["saved_bytes", "predicted_saved_bytes", "loss_saved_bytes"]
    assert [finding.figure for finding in row.findings] == ["status", *deterministic, "peak"]


def test_another_version_of_actbench_is_what_a_check_is_for() -> None:
    newer = ENVIRONMENT | {"versions": {"actbench": "9.0", "torch": "2.13.0"}}
    assert not check_records([example()], [example(environment=newer)]).failures


def test_a_recipe_is_of_its_own_row_where_both_files_have_it() -> None:
    longer = {"recipe": example()["recipe"] | {"epochs": 9}}
    both = [example(), example(**longer)]
    verdict = check_records(both, both[:1])
    assert [row.recipe["epochs"] for row, _ in verdict.failures] == [9]
    assert not check_records(both, both).failures


def test_one_row_on_two_machines_cannot_be_compared() -> None:
    other = example(seed=1, environment=ENVIRONMENT | {"threads": 4})
    with pytest.raises(UsageError, match=r"in the new measurement differ in threads \(2 and 4\)"):
        check_records([example(), example(seed=1)], [example(), other])


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(UsageError, match="no run that is ok"):
        check_records([example(status="oom")], [example()])
    with pytest.raises(UsageError, match="holds no records"):
        check_records([example()], [])


def test_a_baseline_is_the_last_final_record_of_every_job() -> None:
    first, again = example(saved_bytes=1), example(saved_bytes=2)
    oom, killed = example("exact", status="oom"), example("blockwise", status="killed")
    assert choose_final([first, oom, killed, again]) == [again, oom]
    with pytest.raises(UsageError, match="no run that is ok"):
        choose_final([oom, killed])


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"device_name": "another"}, r"device_name a processor and another"),
        ({"versions": {"actbench": "0.2.0", "torch": "2.13.0"}}, r"actbench 0.1.0 and 0.2.0"),
    ],
)
def test_a_baseline_is_of_one_machine(environment: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        choose_final([example(), example("exact", environment=ENVIRONMENT | environment)])


def test_every_limit_can_be_set_and_some_for_a_scheme_alone(tmp_path: Path) -> None:
    path = tmp_path / "check.toml"
    path.write_text(
        "[check]\nsaved_bytes = 0.02\ntime = 0.2\nscore = 0.03\nloss = 0.04\npeak = 0.06\nsignificance = 0.01\n"
        'control = false\n[check.scheme.exact]\nsaved_bytes = 0\n[check.scheme."blockwise:bits=4"]\ntime = 0.5\n'
    )
    settings = read_settings(path)
    assert settings.of("fp32").saved_bytes == 0.02
    assert settings.of("exact").saved_bytes == 0
    assert settings.of("exact").time == 0.2
    assert settings.of("blockwise:bits=4").time == 0.5
    base = [example("fp32"), example("exact")]
    verdict = check_records(base, [record | {"saved_bytes": 1010} for record in base], settings)
    assert [row.scheme for row, _ in verdict.failures] == ["exact"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[check]\ntiem = 0.1", "may not hold 'tiem': did you mean time"),
        ("[chek]\ntime = 0.1", "may not hold 'chek': did you mean check"),
        ("[check]\ntime = 10", "time = 10 in .* is not from 0 to below 1: write a fraction"),
        ("[check]\ntime = -0.1", "time = -0.1"),
        ("[check]\ntime = nan", "time = NaN"),
        ("[check]\ntime = true", "time = true in .* is no number"),
        ('[check]\ntime = "10 %"', 'time = "10 %"'),
        ("[check]\nsignificance = 0", "significance = 0 in .* is not above 0"),
        ("[check]\ncontrol = 1", "control = 1 in .* is neither true nor false"),
        ("check = 3", "is 3, not a table"),
        ("[check]\nscheme = 3", "scheme in .* holds no tables"),
        ("[check.scheme.exat]\ntime = 0.1", "exat"),
        ("[check.scheme.exact]\nsignificance = 0.1", "may not hold 'significance'"),
        ("[check", "is no TOML"),
        ("[check]\ntime = " + "9" * 5000, "is no TOML"),
        ("a = " + "[" * 10**5, "is no TOML"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "check.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_settings(path)
    assert "check.toml" in str(caught.value)


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no TOML"):
        read_settings(tmp_path / "bytes.toml")


@pytest.mark.parametrize("field", ["peak_allocated_bytes", "peak_reserved_bytes", "nvml_peak_bytes"])
def test_every_kind_of_a_gpus_peak_is_guarded(field: str) -> None:
    figures = {"peak_allocated_bytes": 2**30, "peak_reserved_bytes": 2**30, "nvml_peak_bytes": 2**31}
    where = {"environment": ENVIRONMENT | {"device": "cuda"}}

    def measured(**values: int | None) -> Records:
        return [example(seed=seed) | where | figures | values for seed in range(3)]

    base, grown, lost = measured(), measured(**{field: 2 * figures[field]}), measured(**{field: None})
    assert [len(check_records(base, new, Settings(), False).failures) for new in (base, grown, lost)] == [0, 1, 1]
    assert not check_records(grown, base, Settings(), False).failures


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"graph": {"nodes": 340, "edges": 900, "features": 128}}, "nodes is .* in one run and .* in another"),
        ({"metrics": scored(0.5) | {"name": "ROC-AUC"}}, "metric is .* in one run and .* in another"),
        ({"scheme": {"name": "exact", "bits": 8}}, "bits is .* in one run and .* in another"),
    ],
)
def test_another_computation_under_the_same_name_cannot_be_compared(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_records([example("exact")], [example("exact") | change], Settings(), False)


def test_numbers_beyond_all_floats_are_no_figures() -> None:
    broken = example(saved_bytes=10**400, metrics=scored(1e308), curve={"loss": [1e308] * 3, "valid": []})
    assert check_records([example()], [broken], Settings(), False).failures


def test_a_record_cannot_give_commands_to_whoever_prints_it() -> None:
    hostile = example(dataset="d\n::warning::planted\x1b[31m\ud800", saved_bytes=1010)
    verdict = check_records([hostile | {"saved_bytes": 1000}], [hostile], Settings(), False)
    (row,) = verdict.rows
    assert row.dataset == "d\ufffd::warning::planted\ufffd[31m\ufffd"


def test_a_loss_curve_with_a_hole_is_lost() -> None:
    holed = example(curve={"loss": [None, 2.0, 1.5], "valid": [0.1, 0.2, 0.3]})
    (failure,) = check_records([example()], [holed], Settings(), False).failures
    assert failure[1].figure == "loss"


def test_a_loss_curve_without_its_end_is_lost() -> None:
    """Its mean would be over other epochs, here better ones than the baseline's."""
    short = example(curve={"loss": [3.0, 1.0], "valid": [0.1, 0.2, 0.3]})
    (failure,) = check_records([example()], [short], Settings(), False).failures
    assert (failure[1].figure, failure[1].why) == ("loss", "unmeasured")


def test_what_the_loss_keeps_is_judged_too() -> None:
    verdict = check_records([example()], [example(loss_saved_bytes=11)])
    assert [finding.figure for _, finding in verdict.failures] == ["loss_saved_bytes"]
    nothing = example(loss_saved_bytes=0)
    assert not check_records([nothing], [nothing]).failures
    assert check_records([nothing], [example()]).failures

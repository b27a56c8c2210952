"""Tuning: what it reckons against brute force, and what it chooses against what it says."""

import math
from itertools import product

import pytest

from actbench.errors import UsageError
from actbench.models import Model
from actbench.scheme import Scheme
from actbench.studies import tuning
from actbench.studies.fixed_weights import FixedWeights
from actbench.studies.gradient_noise import estimate, measure_gradient_noise
from actbench.studies.tuning import Candidate, Choice, Tuning, reckon, scheme_of, tune
from tests.studies.test_gradient_noise import STANDARD_ERRORS, fixed, whole_numbers
from tests.training.test_training import tiny

Patch = pytest.MonkeyPatch


def test_a_choice_per_call_is_a_scheme_whose_text_is_read_back() -> None:
    choices = {
        "linear 1": Choice(2, 64, 4, "clipped-normal"),
        "linear 2": Choice(32),
        "batch_norm 1": Choice(2, 64, 1, "clipped-normal"),
        "linear 3": Choice(4, 256, 1, "uniform"),
        "linear 4": Choice(2, 64, 4, "clipped-normal"),
    }
    scheme = scheme_of(choices)
    assert str(scheme) == (
        "blockwise-vm:block=64,projection=4,dropout=seed/linear2:bits=32/"
        "linear3:bits=4,block=256,projection=1,levels=uniform"
    )
    assert Scheme.parse(str(scheme)) == scheme
    for call, choice in choices.items():
        operation, number = call.split(" ")
        found = scheme.for_call(operation, int(number))
        assert found.compresses == choice.quantizes
        if choice.quantizes:
            assert (found.bits, str(found.block), found.levels) == (choice.bits, str(choice.block), choice.levels)
        if choice.quantizes and operation == "linear":
            assert found.projection == choice.projection
    everything = scheme_of(dict.fromkeys(choices, Choice(32)))
    assert {str(each) for each in everything.overrides} >= {"linear1:bits=32", "batch_norm1:bits=32"}


@pytest.fixture
def few(monkeypatch: Patch) -> None:
    """Few enough candidates for brute force."""
    monkeypatch.setattr(tuning, "BLOCKS", (32, 256))
    monkeypatch.setattr(tuning, "BITS", (1, 2, 4))
    monkeypatch.setattr(tuning, "PROJECTIONS", (1, 4))


def alone(found: Tuning, call: str, choice: Choice) -> Scheme:
    others = dict.fromkeys((each.call for each in found.calls), Choice(32))
    return scheme_of(others | {call: choice})


@pytest.mark.usefixtures("few")
def test_what_is_reckoned_of_a_linear_is_what_many_draws_of_it_alone_give() -> None:
    weights = fixed(whole_numbers(16), epochs=2, layers=2, hidden=16, batch_norm=False)
    found = tune([weights], 3, budget_bytes=10**6)
    by_seed = [reckon(weights, ["linear 1", "linear 4"], seed) for seed in range(20)]
    checked = 0
    for call in (each for each in found.calls if each.call in ("linear 1", "linear 4")):
        for choice in (Choice(2, 32, 1, "clipped-normal"), Choice(1, 256, 1), Choice(2, 32, 4), Choice(4, 256, 4)):
            (candidate,) = (each for each in call.candidates if each.choice == choice)
            reckoned = [each[call.call][choice] for each in by_seed]
            assert candidate == Candidate(choice, candidate.saved_bytes, reckoned[0], measured=False)
            measured = measure_gradient_noise(weights, alone(found, call.call, choice), 60).whole.total
            expected = estimate(reckoned)
            error = math.hypot(measured.standard_error, expected.standard_error)
            assert abs(expected.mean - measured.mean) <= STANDARD_ERRORS * error
            checked += 1
    assert checked == 8


@pytest.mark.usefixtures("few")
def test_bytes_and_noise_of_the_whole_are_what_was_said_and_within_the_budget() -> None:
    batches = [FixedWeights(fixed(tiny(), epochs=3, layers=3, hidden=32).trainer, seed) for seed in range(2)]
    least = tune(batches, 3, budget_bytes=2**40).tried[-1]
    assert least.noise.mean == 0
    for budget in (4000, 6000, 9000):
        found = tune(batches, 4, budget_bytes=budget)
        chosen = found.chosen
        assert chosen.scheme == found.scheme
        assert chosen.saved_bytes == chosen.predicted_bytes
        assert chosen.saved_bytes <= budget
        assert sum(call.candidates[call.chosen].saved_bytes for call in found.calls) + found.other_bytes == (
            chosen.saved_bytes
        )
        assert sum(call.candidates[call.chosen].noise for call in found.calls) == pytest.approx(chosen.predicted_noise)
        assert all(call.chosen in call.front for call in found.calls)
        assert batches[0].saved_bytes(Scheme.parse(str(found.scheme))) == chosen.saved_bytes


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("model", ["gcn", "gcnii"])
def test_without_batch_norm_and_projection_the_sum_is_the_noise_of_the_whole(model: Model, monkeypatch: Patch) -> None:
    """Of GCN's and GCNII's calls, all linear, no noise reaches another's gradient; GCNII scales its products."""
    monkeypatch.setattr(tuning, "PROJECTIONS", (1,))
    weights = fixed(tiny(), epochs=2, model=model, layers=4, hidden=32, batch_norm=False)
    shapes = {call.call: call for call in tune([weights], 3, budget_bytes=10**6).calls}
    assert len(shapes) == (4 if model == "gcn" else 6)
    choices = {
        call: Choice(32) if len(found.candidates) == 1 else found.candidates[2 + number % 4].choice
        for number, (call, found) in enumerate(shapes.items())
    }
    reckoned = reckon(weights, [call for call, choice in choices.items() if choice.quantizes], 0)
    expected = sum(reckoned[call][choice] for call, choice in choices.items() if choice.quantizes)
    measured = measure_gradient_noise(weights, scheme_of(choices), 200).whole.total
    assert expected > 0
    assert abs(expected - measured.mean) <= STANDARD_ERRORS * measured.standard_error


@pytest.mark.usefixtures("few")
def test_of_samples_the_largest_is_counted() -> None:
    first = fixed(tiny(), sampler="saint", layers=2, hidden=16, roots=20, walk_length=2, steps=2)
    batches = [first, *(FixedWeights(first.trainer, seed) for seed in range(1, 4))]
    largest = max(batches, key=lambda weights: weights.batch.x.shape[0])
    found = tune(batches, 3, budget_bytes=10**6)
    assert found.chosen.saved_bytes == largest.saved_bytes(found.scheme)


@pytest.mark.usefixtures("few")
def test_a_tensor_that_two_calls_share_is_never_counted_too_low() -> None:
    weights = fixed(tiny(), epochs=1, model="gat", layers=2, hidden=8)
    for budget in (20_000, 40_000, 10**6):
        chosen = tune([weights], 3, budget_bytes=budget).chosen
        assert chosen.predicted_bytes is not None
        assert chosen.saved_bytes <= chosen.predicted_bytes <= budget


@pytest.mark.usefixtures("few")
def test_what_the_data_keeps_anyway_is_kept_as_it_is_for_nothing() -> None:
    found = tune([fixed(tiny(), layers=2, hidden=16)], 3, budget_bytes=10**6)
    (data,) = (call for call in found.calls if call.call == "linear 2")
    assert data.candidates == [Candidate(Choice(32), 0, 0.0, measured=False)]


@pytest.mark.usefixtures("few")
def test_batch_norms_candidates_are_measured() -> None:
    weights = fixed(tiny(), epochs=2, layers=2, hidden=32)
    found = tune([weights], 3, budget_bytes=10**6)
    (call,) = (each for each in found.calls if each.call == "batch_norm 1")
    measured = [candidate for candidate in call.candidates if candidate.measured]
    assert len(measured) == len(call.candidates) - 1 >= 3
    for candidate in measured[:2]:
        again = measure_gradient_noise(weights, alone(found, "batch_norm 1", candidate.choice), 3).whole.total
        # Linears' gradients are summed in another order there: by less than 90 · 2**-24 of g, beside deviations of at
        # least a hundredth of it.
        assert again.mean > 1e-4
        assert candidate.noise == pytest.approx(again.mean, rel=2 * 90 * 2.0**-24 / 1e-2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("bound", [0.5, 0.05, 1e-12])
def test_a_bound_of_noise_is_kept_to_by_what_is_measured(bound: float) -> None:
    weights = fixed(tiny(), epochs=3, layers=3, hidden=32)
    found = tune([weights], 4, max_noise=bound)
    assert found.chosen.noise.mean <= bound
    again = measure_gradient_noise(weights, Scheme.parse(str(found.scheme)), 4).whole.total
    assert found.chosen.noise.mean == pytest.approx(again.mean, rel=1e-9, abs=1e-300)
    assert found.chosen.noise.standard_error == pytest.approx(again.standard_error, rel=1e-9, abs=1e-300)
    fresh = [weights.gradients(weights.compress(found.scheme, seed)) for seed in range(100, 110)]
    g = weights.gradients()
    norm = sum(float(each.square().sum()) for each in g.values())
    noise = sum(float((draw[name] - g[name]).square().sum()) for draw in fresh for name in g) / norm / len(fresh)
    assert noise <= bound + STANDARD_ERRORS * found.chosen.noise.standard_error


@pytest.mark.usefixtures("few")
def test_no_combination_of_candidates_is_better_than_the_one_chosen() -> None:
    weights = fixed(tiny(), layers=2, hidden=16)
    found = tune([weights], 3, budget_bytes=2500)
    fronts = [[call.candidates[index] for index in call.front] for call in found.calls]
    room = 2500 - found.other_bytes
    best = min(
        sum(candidate.noise for candidate in each)
        for each in product(*fronts)
        if sum(candidate.saved_bytes for candidate in each) <= room
    )
    assert found.chosen.predicted_noise == pytest.approx(best, rel=1e-12)


@pytest.mark.usefixtures("few")
def test_a_budget_below_all_schemes_is_told_with_the_least_that_is_possible() -> None:
    weights = fixed(tiny(), layers=2, hidden=16)
    with pytest.raises(UsageError, match="is less than any scheme here keeps: give at least") as caught:
        tune([weights], 3, budget_bytes=100)
    least = int(str(caught.value).split("at least ")[1].split(" ")[0])
    assert tune([weights], 3, budget_bytes=least).chosen.saved_bytes == least
    with pytest.raises(UsageError):
        tune([weights], 3, budget_bytes=least - 1)


@pytest.mark.parametrize("limits", [{}, {"budget_bytes": 1, "max_noise": 1.0}])
def test_exactly_one_limit_is_given(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a budget or a bound"):
        tune([], 3, **limits)  # type: ignore[arg-type]

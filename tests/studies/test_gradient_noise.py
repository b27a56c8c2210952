"""Gradient noise against closed forms and brute force, within five standard errors of the draws themselves."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from actbench.compress import compress
from actbench.errors import ActbenchError
from actbench.graphs import Graph
from actbench.models import Model
from actbench.quant import Projection
from actbench.scheme import Scheme
from actbench.studies.fixed_weights import FixedWeights
from actbench.studies.gradient_noise import Estimate, GradientNoise, bias_of_mean, measure_gradient_noise
from actbench.studies.substitution import exact, substituted, unrounded
from actbench.training import recipe_for
from actbench.training.recipe import Sampler
from tests.training.test_training import tiny

CPU = torch.device("cpu")
STANDARD_ERRORS = 5
Matrix = npt.NDArray[np.float64]


def whole_numbers(width: int = 12) -> Graph:
    """A graph whose features are integers, with the range 0 to 12 in every row: scales of 2 bits are exactly 4."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(13, (90, width), generator=generator).float()
    x[:, 0], x[:, 1] = 0, 12
    return replace(tiny(), x=x)


def fixed(
    graph: Graph, epochs: int = 0, model: Model = "sage", sampler: Sampler = "full", **values: object
) -> FixedWeights:
    recipe = recipe_for("own.npz", model, sampler).overridden(**{"dropout": 0.0, "epochs": 1} | values)
    return FixedWeights.trained(graph, replace(recipe, epochs=epochs), CPU, 0)


def holds(found: Estimate, expected: float) -> bool:
    return abs(found.mean - expected) <= STANDARD_ERRORS * found.standard_error


def output_gradient(weights: FixedWeights) -> Matrix:
    """∂loss/∂logits of a network of one layer, in float64: (softmax - one-hot) / nodes on training nodes, else 0."""
    trainer = weights.trainer
    with torch.no_grad():
        logits = trainer.network(trainer.x, trainer.adjacency).double().numpy()
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    chances[np.arange(len(chances)), trainer.y.numpy()] -= 1
    mask = np.zeros((len(chances), 1))
    mask[trainer.train.numpy()] = 1 / len(trainer.train)
    result: Matrix = chances * mask
    return result


def test_a_linear_layers_rounding_noise_is_the_sum_of_its_elements_variances() -> None:
    """E‖∂zᵀ(x̂ - x)‖² = Σ_i ‖∂z_i‖² Σ_j Var x̂_ij, with Var = 16 f (1 - f) for x = 4 (k + f) under 2 bits."""
    graph = whole_numbers()
    weights = fixed(graph, layers=1)
    found = measure_gradient_noise(weights, Scheme.parse("exact:projection=1"), 300)
    x = graph.x.double().numpy()
    fraction = x / 4 - np.floor(x / 4)
    variance = 16 * fraction * (1 - fraction)
    expected = float(np.sum(np.square(output_gradient(weights)).sum(1) * variance.sum(1))) / found.squared_norm
    tensor = found.tensors["convs.0.lin_r.weight"]
    assert expected > 0
    assert holds(tensor.rounding, expected)
    assert tensor.total == tensor.rounding
    assert tensor.projection == Estimate(0, 0)
    assert found.tensors["convs.0.lin_l.bias"].total == Estimate(0, 0)


def test_a_linear_layers_projection_noise_is_its_gradients_norm_times_d_minus_1_over_r() -> None:
    """E‖M (P Pᵀ - 1)‖² = (D - 1) / R ‖M‖² for M [H, D] and entries ±1/√R of P [D, R]."""
    found = measure_gradient_noise(fixed(whole_numbers(), layers=1), Scheme.parse("exact:projection=4"), 400)
    for name in ("convs.0.lin_l.weight", "convs.0.lin_r.weight"):
        tensor = found.tensors[name]
        assert holds(tensor.projection, 11 / 3 * tensor.share)
        assert holds(tensor.cross, 0)
        assert holds(tensor.bias, 0)


@pytest.fixture(scope="module")
def deep() -> tuple[FixedWeights, GradientNoise]:
    weights = fixed(tiny(), epochs=3, layers=3, hidden=16, dropout=0.5)
    return weights, measure_gradient_noise(weights, Scheme.parse("blockwise:projection=2,block=16"), 40)


def test_noise_is_what_loops_over_the_draws_give(deep: tuple[FixedWeights, GradientNoise]) -> None:
    weights, found = deep
    g = weights.gradients()
    draws = [weights.gradients(compress(found.scheme, seed=seed)) for seed in range(found.draws)]
    norm = sum(float(value.double().square().sum()) for value in g.values())
    totals = []
    for draw in draws:
        squares = {name: float((draw[name].double() - g[name].double()).square().sum()) / norm for name in g}
        totals.append(sum(squares.values()))
    assert found.squared_norm == pytest.approx(norm, rel=1e-12)
    assert found.whole.total.mean == pytest.approx(np.mean(totals), rel=1e-12)
    assert found.whole.total.standard_error == pytest.approx(np.std(totals, ddof=1) / np.sqrt(40), rel=1e-12)
    assert found.whole.share == 1
    own = found.tensors["convs.2.lin_r.weight"].own
    assert own is not None
    own_norm = float(g["convs.2.lin_r.weight"].double().square().sum())
    assert own.mean * own_norm == pytest.approx(found.tensors["convs.2.lin_r.weight"].total.mean * norm, rel=1e-12)


def test_the_split_adds_up_and_so_do_the_tensors(deep: tuple[FixedWeights, GradientNoise]) -> None:
    whole, tensors = deep[1].whole, deep[1].tensors
    assert whole.projection.mean + whole.rounding.mean + whole.cross.mean == pytest.approx(whole.total.mean, rel=1e-12)
    for part in ("share", "total", "projection", "rounding", "cross", "bias"):
        values = [getattr(noise, part) for noise in tensors.values()]
        means = [value if part == "share" else value.mean for value in values]
        expected = whole.share if part == "share" else getattr(whole, part).mean
        assert sum(means) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # What batch norm's own bias adds to the cross term is of second order and far below these draws' error.
    assert holds(whole.cross, 0)
    assert whole.projection.mean > whole.rounding.mean > 0


def test_a_bias_before_batch_norm_has_no_gradient_of_its_own_to_compare_with(
    deep: tuple[FixedWeights, GradientNoise],
) -> None:
    tensors = deep[1].tensors
    assert tensors["convs.0.lin_l.bias"].own is None
    assert tensors["convs.2.lin_l.bias"].own == Estimate(0, 0)


def test_what_keeps_all_as_it_is_has_no_noise_at_all_under_equal_dropout_masks() -> None:
    weights = fixed(tiny(), layers=2, dropout=0.5)
    untouched = "/".join(("exact", *(f"linear{call}:bits=32" for call in range(1, 5)), "batch_norm1:bits=32"))
    for text in ("fp32", "checkpoint", untouched):
        found = measure_gradient_noise(weights, Scheme.parse(text), 3)
        for noise in (found.whole, *found.tensors.values()):
            assert noise.total == noise.projection == noise.rounding == noise.cross == noise.bias == Estimate(0, 0)


def test_autocast_rounds_alike_every_time_so_all_of_its_noise_is_bias() -> None:
    whole = measure_gradient_noise(fixed(tiny(), layers=2), Scheme.parse("bf16"), 3).whole
    assert whole.total.mean > 0
    assert whole.total.standard_error == 0
    assert whole.bias.mean == pytest.approx(whole.total.mean, rel=1e-12)


def test_with_a_sampler_all_gradients_are_of_one_sample() -> None:
    weights = fixed(tiny(), sampler="saint", layers=2, roots=20, walk_length=2, steps=2, epochs=1)
    assert weights.batch.x.shape[0] < 90
    found = measure_gradient_noise(weights, Scheme.parse("fp32"), 3)
    assert found.whole.total == Estimate(0, 0)
    noisy = measure_gradient_noise(weights, Scheme.parse("int4"), 3).whole
    assert noisy.total.mean > 0
    assert noisy.projection == Estimate(0, 0)


def test_measuring_draws_nothing_from_the_users_generator_and_changes_no_weight() -> None:
    weights = fixed(tiny(), layers=2, dropout=0.5)
    before = [p.clone() for p in weights.trainer.network.parameters()]
    state = torch.get_rng_state()
    measure_gradient_noise(weights, Scheme.parse("exact"), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, weights.trainer.network.parameters(), before))


def test_kept_exactly_the_gradient_is_fp32s_and_projected_it_is_times_p_p_transposed() -> None:
    weights = fixed(whole_numbers(), layers=1)
    scheme = Scheme.parse("exact:projection=3")
    g, kept, projected = (
        weights.gradients(context)["convs.0.lin_r.weight"].double()
        for context in (None, substituted(scheme, 7, exact), substituted(scheme, 7, unrounded))
    )
    # A float32 sum of n products is within n · 2**-24 times their magnitudes: Σ|∂z_i| < 1 and |x| <= 12.
    assert float((kept - g).abs().max()) <= 2 * 90 * 2.0**-24 * 12
    # lin_l is the first tensor kept, lin_r the second, with streams 2 and 3; |x P| <= 12 · 12 / 2, |x P Pᵀ| <= 144.
    p = Projection(12, 4, 7, 2).matrix(g)
    assert float((projected - g @ p @ p.t()).abs().max()) <= 2 * (90 + 12 + 4) * 2.0**-24 * 144


def test_the_bias_is_that_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([0.5, -0.2, 0.0], dtype=torch.float64)
    draws = shift + torch.randn(500, 3, dtype=torch.float64, generator=generator)
    found = bias_of_mean(draws @ draws.t())
    assert holds(found, float(shift.square().sum()))
    # An unbiased estimate by other means: ‖mean‖² less the variance of the mean.
    by_mean = float(draws.mean(0).square().sum() - draws.var(0).sum() / 500)
    assert found.mean == pytest.approx(by_mean, rel=1e-9)
    # With a bias the jackknife's error is the larger one.
    left_out = []
    for index in range(20):
        rest = torch.cat((draws[:index], draws[index + 1 : 20])) + 10
        left_out.append(bias_of_mean(rest @ rest.t()).mean)
    few = bias_of_mean((draws[:20] + 10) @ (draws[:20] + 10).t())
    assert few.standard_error == pytest.approx(np.sqrt(19 * np.var(left_out)), rel=1e-9)


@pytest.mark.parametrize(("shift", "exact"), [(0.0, np.sqrt(2 * 50 / (6 * 5))), (3.0, None)])
def test_the_biass_error_is_that_of_many_repetitions(shift: float, exact: float | None) -> None:
    """Var ⟨d, d'⟩ = 50 for standard normal vectors of 50, and six draws have 15 pairs, uncorrelated without a bias."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(400):
        draws = shift / np.sqrt(50) + torch.randn(6, 50, dtype=torch.float64, generator=generator)
        found.append(bias_of_mean(draws @ draws.t()))
    spread = float(np.std([each.mean for each in found], ddof=1))
    if exact is not None:
        # The standard deviation of 400 values is within 1 / √800 of its own, five times.
        assert spread == pytest.approx(exact, rel=5 / np.sqrt(800))
    told = float(np.sqrt(np.mean([each.standard_error**2 for each in found])))
    # On average never too small, and not twice too large.
    assert spread * (1 - 5 / np.sqrt(800)) <= told <= 2 * spread


def test_a_gradient_that_is_not_finite_or_nothing_is_told_in_a_sentence() -> None:
    weights = fixed(tiny(), layers=1)
    with torch.no_grad():
        next(weights.trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(ActbenchError, match="is not finite: lower the learning rate"):
        measure_gradient_noise(weights, Scheme.parse("exact"), 3)
    graph = replace(tiny(), x=torch.zeros(90, 3), y=torch.zeros(90, dtype=torch.int64), classes=1)
    with pytest.raises(ActbenchError, match="The gradient is 0"):
        measure_gradient_noise(fixed(graph, layers=1), Scheme.parse("exact"), 3)

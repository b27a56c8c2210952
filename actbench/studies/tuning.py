"""Bits, block size, projection and levels for every call, chosen by gradient noise against bytes.

Kept inputs have independent noise, so to first order the gradient noise of a scheme is the sum of what each call alone
causes while all others are exact. For a linear input x [N, D] that is known in closed form from one backward pass, with
∂z [N, H] the gradient of the linear's output and g_W = ∂zᵀ x:

    projection to R columns   (D - 1) / R ‖g_W‖²
    rounding of u = x P       D / R Σ_i ‖∂z_i‖² Σ_r Var û_ir        (D / R is 1 without projection)

Any other input, as batch norm's, acts on all that is before it; its options are measured, those alone that a count of
Σ Var x̂ leaves on the front. The choice is then an exact multiple-choice knapsack, and is measured as a whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from actbench.compress.codec import Noise, Quantized
from actbench.errors import ActbenchError, UsageError
from actbench.quant import Packing, Projection, dequantize, quantize
from actbench.quant.layout import projected_width
from actbench.scheme import BITS, LEVELS, PROJECTED, UNTOUCHED, Block, Override, Scheme
from actbench.studies import knapsack
from actbench.studies.distribution import expected_squares, sampled_rows
from actbench.studies.fixed_weights import FixedWeights
from actbench.studies.gradient_noise import Estimate, estimate
from actbench.studies.substitution import exact, probed, redrawn, substituted

BLOCKS: Final = (32, 64, 128, 256, 1024)
PROJECTIONS: Final = (1, 2, 4, 8)
_SAMPLED_ELEMENTS: Final = 2**18
"""Stored values that rounding variances are counted on, of larger inputs evenly spaced runs of rows."""
_TRIES: Final = 8
_TIGHTER: Final = 0.98

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Choice:
    """How one call may keep its input; `bits` is 32 where it is kept as it is, and the rest means nothing then."""

    bits: int
    block: int = 1
    projection: int = 1
    levels: str = "uniform"

    @property
    def quantizes(self) -> bool:
        """Whether the input is kept otherwise than it is."""
        return self.bits != UNTOUCHED

    def __str__(self) -> str:
        if not self.quantizes:
            return f"bits={self.bits}"
        projection = f",projection={self.projection}" if self.projection > 1 else ""
        return f"bits={self.bits},block={self.block}{projection},levels={self.levels}"


@dataclass(frozen=True)
class Candidate:
    """A choice with the bytes and the gradient noise that it alone causes; `measured` is False where reckoned."""

    choice: Choice
    saved_bytes: int
    noise: float
    measured: bool


@dataclass(frozen=True)
class CallTuned:
    """One call, as "linear 2", its candidates, which of them no other beats, cheapest first, and the one chosen."""

    call: str
    candidates: list[Candidate]
    front: list[int]
    chosen: int


@dataclass(frozen=True)
class Tried:
    """A whole scheme that was measured; the predictions are None for one that tuning did not make."""

    scheme: Scheme
    saved_bytes: int
    noise: Estimate
    predicted_bytes: int | None = None
    predicted_noise: float | None = None


@dataclass(frozen=True)
class Tuning:
    """The scheme, its calls, every whole scheme that was measured, and the bytes that no choice changes."""

    scheme: Scheme
    calls: list[CallTuned]
    tried: list[Tried]
    other_bytes: int

    @property
    def chosen(self) -> Tried:
        """The chosen scheme as it was measured."""
        return next(each for each in self.tried if each.scheme == self.scheme)


class _Batch:
    """Weights under one dropout mask, with FP32's gradient there."""

    def __init__(self, weights: FixedWeights) -> None:
        self.weights = weights
        self.gradients = weights.gradients()
        if _square(self.gradients) == 0:
            raise ActbenchError("The gradient is 0, so its noise has no measure: train for fewer --epochs.")

    def noises(self, scheme: Scheme, draws: int) -> list[float]:
        """‖ĝ - g‖² / ‖g‖² of every draw of `scheme`."""
        seeds = range(draws)
        return [_noise(self.weights.gradients(self.weights.compress(scheme, seed)), self.gradients) for seed in seeds]

    def noises_alone(self, call: str, choices: Sequence[Choice], draws: int) -> list[list[float]]:
        """The same of every choice for one call that is no linear, all else exact: many backwards of one forward."""
        now: tuple[Choice, int] | None = None

        def redraw(x: Tensor) -> Tensor:
            if now is None:
                return x
            choice, seed = now
            packing = Packing.of(x.shape, x.dtype, _scheme_of_choice(choice))
            return dequantize(quantize(x, packing, seed, Noise(seed, 0).rounding_stream), packing)

        def substitute(at: str, kept: Quantized) -> Quantized:
            return redrawn(kept, redraw) if at == call else exact(at, kept)

        loss = self.weights.forward(substituted(_EIGHT_BITS, 0, substitute))
        g = self.weights.backward(loss, again=True)
        found = []
        for choice in choices:
            noises = []
            for seed in range(draws):
                now = choice, seed
                noises.append(_noise(self.weights.backward(loss, again=True), g))
            found.append(noises)
        return found


_EIGHT_BITS: Final = Scheme.parse("exact:bits=8,projection=1")
"""Whose calls are looked at: of the papers' kind, as what is chosen is."""


def _square(gradients: dict[str, Tensor]) -> float:
    return sum(float(g.double().square().sum()) for g in gradients.values())


def _noise(noisy: dict[str, Tensor], g: dict[str, Tensor]) -> float:
    return _square({name: noisy[name].double() - g[name].double() for name in g}) / _square(g)


def tune(
    masked: Sequence[FixedWeights],
    draws: int,
    budget_bytes: int | None = None,
    max_noise: float | None = None,
    beside: Sequence[Scheme] = (),
    report: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """The scheme of least noise in `budget_bytes` of saved-for-backward memory, or the smallest within `max_noise`.

    `masked` are the same weights under several dropout masks, and with a sampler on as many samples, of which bytes are
    the largest's; noises are means over them, each over `draws` draws.
    Schemes `beside` are measured too. Exactly one limit is given. Raises `UsageError` if the smallest scheme is larger
    than the budget.
    """
    if (budget_bytes is None) == (max_noise is None):
        raise ValueError("give a budget or a bound of noise")
    batches = [_Batch(weights) for weights in masked]
    # Of samples the largest counts: all bytes are its.
    batches.sort(key=lambda batch: batch.weights.batch.x.shape[0], reverse=True)
    other_bytes, found = _candidates(batches, draws, budget_bytes, report)
    by_noise = {call: [knapsack.Option(c.noise, c.saved_bytes) for c in each] for call, each in found.items()}
    tried = [_measured(batches, scheme, draws, report) for scheme in beside]
    if budget_bytes is not None:
        chosen = knapsack.choose(list(by_noise.values()), budget_bytes - other_bytes)
        assert chosen is not None
        best = _try(batches, found, chosen, other_bytes, draws, report)
        tried.append(best)
    else:
        assert max_noise is not None
        best, chosen = _within_noise(batches, found, max_noise, other_bytes, draws, tried, report)
    calls = [
        CallTuned(call, candidates, knapsack.pareto(by_noise[call]), index)
        for (call, candidates), index in zip(found.items(), chosen, strict=True)
    ]
    return Tuning(best.scheme, calls, tried, other_bytes)


def _within_noise(
    batches: Sequence[_Batch],
    found: dict[str, list[Candidate]],
    max_noise: float,
    other_bytes: int,
    draws: int,
    tried: list[Tried],
    report: Callable[[str], None],
) -> tuple[Tried, list[int]]:
    """The smallest scheme whose measured noise keeps to the bound: where noises multiply, the sum falls short of it."""
    limit, last = max_noise, len(tried) + _TRIES
    groups = [[knapsack.Option(c.saved_bytes, c.noise) for c in each] for each in found.values()]
    while True:
        # Inputs kept as they are cause no noise, so there is always a choice, and at last one that keeps to the bound.
        chosen = knapsack.choose(groups, limit)
        assert chosen is not None
        best = _try(batches, found, chosen, other_bytes, draws, report)
        tried.append(best)
        if best.noise.mean <= max_noise:
            return best, chosen
        if limit == 0:
            raise UsageError(
                f"--max-noise {max_noise:g} is less than what equal gradients differ by here, {best.noise.mean:.1g}: "
                "give more."
            )
        limit = limit * _TIGHTER * max_noise / best.noise.mean if len(tried) < last else 0.0


def _try(
    batches: Sequence[_Batch],
    found: dict[str, list[Candidate]],
    chosen: list[int],
    other_bytes: int,
    draws: int,
    report: Callable[[str], None],
) -> Tried:
    picked = {call: each[index] for (call, each), index in zip(found.items(), chosen, strict=True)}
    scheme = scheme_of({call: candidate.choice for call, candidate in picked.items()})
    return replace(
        _measured(batches, scheme, draws, report),
        predicted_bytes=other_bytes + sum(candidate.saved_bytes for candidate in picked.values()),
        predicted_noise=sum(candidate.noise for candidate in picked.values()),
    )


def scheme_of(choices: dict[str, Choice]) -> Scheme:
    """The scheme in which every call keeps its input as chosen: what is chosen most often, and overrides."""
    quantized = {call: choice for call, choice in choices.items() if choice.quantizes}
    bits, block, levels = _most([(c.bits, c.block, c.levels) for c in quantized.values()], (2, 256, "uniform"))
    projection = _most([c.projection for call, c in quantized.items() if _place(call)[0] in PROJECTED], 1)
    overrides = []
    for call, choice in choices.items():
        operation, number = _place(call)
        if not choice.quantizes:
            overrides.append(Override(operation, number, bits=UNTOUCHED))
            continue
        own = {"bits": choice.bits, "block": Block(choice.block), "levels": choice.levels}
        ratio = choice.projection if operation in PROJECTED else None
        overrides.append(Override(operation, number, **own, projection=ratio))  # type: ignore[arg-type]
    name = "blockwise" if levels == "uniform" else "blockwise-vm"
    # A seed is never more than a mask's bits, and as exact.
    return Scheme(name, bits, Block(block), projection, levels, "seed", tuple(overrides))


def _most(values: Sequence[_Value], otherwise: _Value) -> _Value:
    return Counter(values).most_common(1)[0][0] if values else otherwise


def _place(call: str) -> tuple[str, int]:
    operation, _, number = call.rpartition(" ")
    return operation, int(number)


def _measured(batches: Sequence[_Batch], scheme: Scheme, draws: int, report: Callable[[str], None]) -> Tried:
    report(f"measuring {scheme}")
    found = [estimate(batch.noises(scheme, draws)) for batch in batches]
    mean = sum(each.mean for each in found) / len(found)
    error = math.sqrt(sum(each.standard_error**2 for each in found)) / len(found)
    return Tried(scheme, batches[0].weights.saved_bytes(scheme), Estimate(mean, error))


def _candidates(
    batches: Sequence[_Batch], draws: int, budget_bytes: int | None, report: Callable[[str], None]
) -> tuple[int, dict[str, list[Candidate]]]:
    """Bytes that no choice changes, and the candidates of every call in the order of the forward pass."""
    weights = batches[0].weights
    shapes = _shapes(weights)
    usual = dict.fromkeys(shapes, Choice(2, 256))
    usual_bytes = weights.saved_bytes(scheme_of(usual))
    packed = {call: _bytes_of(shape, usual[call]) for call, shape in shapes.items()}
    other_bytes = usual_bytes - sum(packed.values())
    found = {}
    for call in shapes:
        untouched = weights.saved_bytes(scheme_of(usual | {call: Choice(UNTOUCHED)})) - (usual_bytes - packed[call])
        found[call] = [Candidate(Choice(UNTOUCHED), untouched, 0.0, measured=False)]
    # What is there anyway, as the data, is kept as it is for nothing.
    open_calls = [call for call in shapes if found[call][0].saved_bytes > 0]
    least = other_bytes + sum(min(found[call][0].saved_bytes, _least_bytes(call, shapes[call])) for call in shapes)
    if budget_bytes is not None and budget_bytes < least:
        raise UsageError(
            f"--budget {budget_bytes} bytes is less than any scheme here keeps: give at least {least} bytes, or a "
            "smaller network."
        )
    reckoned = [reckon(batch.weights, open_calls, seed, report) for seed, batch in enumerate(batches)]
    for call in open_calls:
        means = {c: sum(each[call][c] for each in reckoned) / len(reckoned) for c in reckoned[0][call]}
        options = [Candidate(c, _bytes_of(shapes[call], c), noise, measured=False) for c, noise in means.items()]
        if _place(call)[0] not in PROJECTED:
            options = _measure_alone(batches, call, options, draws, report)
        found[call] += options
    return other_bytes, found


def _bytes_of(shape: tuple[int, int], choice: Choice) -> int:
    rows, width = shape
    stored = torch.Size((rows, projected_width(width, choice.projection)))
    return Packing.of(stored, torch.float32, _scheme_of_choice(choice)).layout.total_bytes


def _least_bytes(call: str, shape: tuple[int, int]) -> int:
    ratio = max(PROJECTIONS) if _place(call)[0] in PROJECTED else 1
    return _bytes_of(shape, Choice(min(BITS), max(BLOCKS), ratio))


def _scheme_of_choice(choice: Choice) -> Scheme:
    return Scheme("blockwise", choice.bits, Block(choice.block), choice.projection, choice.levels)


def _shapes(weights: FixedWeights) -> dict[str, tuple[int, int]]:
    """Every kept input [rows, width] by its call."""
    found: dict[str, tuple[int, int]] = {}

    def look(call: str, kept: Quantized) -> Quantized:
        found[call] = kept.packing.shape[0], kept.width
        return kept

    weights.forward(substituted(_EIGHT_BITS, 0, look))
    return found


def reckon(
    weights: FixedWeights, calls: Sequence[str], seed: int, report: Callable[[str], None] = lambda text: None
) -> dict[str, dict[Choice, float]]:
    """Noise over ‖g‖², or Σ Var x̂ of other than linears, of every choice of `calls`, from one backward pass.

    The rounding's part is that under the projections of `seed`.
    """
    found: dict[str, dict[Choice, float]] = {}

    def substitute(call: str, kept: Quantized) -> Quantized:
        if call not in calls:
            return exact(call, kept)
        if _place(call)[0] in PROJECTED:
            return probed(kept, lambda x, left: found.update({call: _reckon_linear(x, left, kept, report)}))
        return probed(kept, None, lambda x: found.update({call: _reckon_other(x, report)}))

    gradients = weights.gradients(substituted(_EIGHT_BITS, seed, substitute))
    norm = _square(gradients)
    return {
        call: {c: v / norm if _place(call)[0] in PROJECTED else v for c, v in each.items()}
        for call, each in found.items()
    }


def _reckon_linear(x: Tensor, left: Tensor, kept: Quantized, report: Callable[[str], None]) -> dict[Choice, float]:
    report(f"reckoning {kept.name}")
    x, left = x.float(), left.float()
    width = x.shape[1]
    by_row = left.square().sum(0)
    square = float((left @ x).double().square().sum())
    found = {}
    for ratio in PROJECTIONS:
        stored = projected_width(width, ratio)
        if ratio > 1 and stored == projected_width(width, ratio // 2):
            continue
        rows = sampled_rows(x.shape[0], stored, _SAMPLED_ELEMENTS, x.device)
        u, weight = x[rows], by_row[rows]
        total = float(by_row.double().sum())
        # Rows that were left out are taken to be as those that were not.
        factor = total / float(weight.double().sum()) if float(weight.sum()) > 0 else 0.0
        projected = stored < width
        if projected:
            u = u @ Projection(width, stored, kept.noise.seed, kept.noise.projection_stream).matrix(u)
        for choice, squares in _rounded(u, ratio):
            rounding = float((squares.view(u.shape).sum(1).double() * weight.double()).sum()) * factor
            spread = width / stored if projected else 1.0
            found[choice] = rounding * spread + ((width - 1) / stored * square if projected else 0.0)
    return found


def _reckon_other(x: Tensor, report: Callable[[str], None]) -> dict[Choice, float]:
    rows = sampled_rows(x.shape[0], x.shape[1], _SAMPLED_ELEMENTS, x.device)
    factor = x.shape[0] / max(rows.numel(), 1)
    return {choice: float(squares.double().sum()) * factor for choice, squares in _rounded(x[rows].float(), 1)}


def _rounded(u: Tensor, ratio: int) -> list[tuple[Choice, Tensor]]:
    """Every choice under one projection ratio with the expected squared error of every element of `u`."""
    found = []
    for bits in BITS:
        for block in BLOCKS:
            # One bit has one level table, and eight are rounded so finely that other levels do not pay.
            names = LEVELS if bits in (2, 4) else LEVELS[:1]
            packing = Packing.of(u.shape, u.dtype, _scheme_of_choice(Choice(bits, block)))
            squares = expected_squares(u, packing, names)
            found += [(Choice(bits, block, ratio, name), squares[name]) for name in names]
    return found


def _measure_alone(
    batches: Sequence[_Batch], call: str, options: list[Candidate], draws: int, report: Callable[[str], None]
) -> list[Candidate]:
    """The options that Σ Var x̂ leaves on the front, with the noise that each causes while all else is exact."""
    front = knapsack.pareto([knapsack.Option(option.noise, option.saved_bytes) for option in options])
    kept = [options[index] for index in front]
    report(f"measuring {len(kept)} candidates of {call} alone")
    by_batch = [batch.noises_alone(call, [option.choice for option in kept], draws) for batch in batches]
    means = [sum(sum(noises) for noises in each) / (len(batches) * draws) for each in zip(*by_batch, strict=True)]
    return [replace(option, noise=mean, measured=True) for option, mean in zip(kept, means, strict=True)]

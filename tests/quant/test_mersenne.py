"""Bits that we draw and the state after them are the Mersenne twister's, so torch's where torch draws with that."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actbench.quant import draw_mask
from actbench.quant.cpu import backend as cpu
from actbench.quant.cpu import mersenne

WORDS = 624
WORD = 2**32 - 1
SIZES = [0, 1, 7, 8, 9, 311, 312, 313, 624, 1023, 1024, 1025, 2048, 5003]
# An element takes two words, which may belong to two rounds of 624.
SPENT = [0, 1, 2, 311, 622, 623, 624, 625]
SMALLEST = 2.0**-53
PROBABILITIES = [
    *(0.0, 5e-324, 2.0**-60, SMALLEST, np.nextafter(SMALLEST, 1), np.nextafter(SMALLEST, 0), 1.5 * SMALLEST),
    *(0.1, 0.3, 1 / 3, np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), 1 - 0.1, 1 - 1 / 3),
    *(1 - 2 * SMALLEST, 1 - SMALLEST, 1.0),
]

torchs = pytest.mark.skipif(not mersenne.matches_torch(), reason="torch draws other numbers here, such as MKL's")


def generator_after(words: int, seed: int = 5) -> torch.Generator:
    """A generator from which so many words of 32 bits have been drawn."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(words):
        torch.empty(1, dtype=torch.float32).uniform_(generator=generator)
    return generator


def draw_as_numpy(numel: int, p: float, generator: torch.Generator) -> npt.NDArray[np.bool_]:
    """As `draw_bits`, by numpy's twister, a bool for every element."""
    state = generator.get_state()
    numbers = state.numpy().view(np.uint64)
    left = numbers[1:2].view(np.int32)[:1]
    twister = np.random.MT19937()
    twister.state = {
        "bit_generator": "MT19937",
        "state": {"key": numbers[3 : 3 + WORDS].astype(np.uint32), "pos": WORDS + 1 - int(left[0])},
    }
    pairs = np.asarray(twister.random_raw(2 * numel), np.uint64).reshape(-1, 2)
    drawn = ((pairs[:, 0] << np.uint64(32) | pairs[:, 1]) & np.uint64(2**53 - 1)) * SMALLEST < p
    if numel:
        after: Any = twister.state["state"]
        numbers[3 : 3 + WORDS], numbers[2], left[0] = after["key"], after["pos"], WORDS + 1 - after["pos"]
        generator.set_state(state)
    return drawn


def draw_as_torch(
    numel: int, p: float, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> npt.NDArray[np.bool_]:
    drawn: npt.NDArray[np.bool_] = (torch.empty(numel, dtype=dtype).bernoulli_(p, generator=generator) != 0).numpy()
    return drawn


def check(bits: torch.Tensor, expected: npt.NDArray[np.bool_]) -> None:
    assert bits.dtype == torch.uint8
    assert np.array_equal(bits.numpy(), np.packbits(expected, bitorder="little"))


@pytest.mark.parametrize("draw", [draw_as_numpy, pytest.param(draw_as_torch, marks=torchs)])
@pytest.mark.parametrize("spent", SPENT)
def test_bits_and_state_are_those_of(draw: Callable[..., npt.NDArray[np.bool_]], spent: int) -> None:
    ours, theirs = generator_after(spent), generator_after(spent)
    # One size after the other, so that each starts where the last one ended.
    for numel in SIZES:
        for p in (0.3, 0.5):
            check(mersenne.draw_bits(numel, p, ours), draw(numel, p, theirs))
            assert torch.equal(ours.get_state(), theirs.get_state())


@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 2**64 - 1), st.integers(0, 700))
def test_any_draw_is_numpys(numel: int, p: float, seed: int, spent: int) -> None:
    ours, theirs = generator_after(spent, seed), generator_after(spent, seed)
    check(mersenne.draw_bits(numel, p, ours), draw_as_numpy(numel, p, theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


@torchs
@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_a_tensors_dtype_changes_no_draw(dtype: torch.dtype) -> None:
    ours, theirs = generator_after(1), generator_after(1)
    check(mersenne.draw_bits(1000, 0.7, ours), draw_as_torch(1000, 0.7, theirs, dtype))


@pytest.mark.parametrize("p", PROBABILITIES)
def test_an_element_is_1_exactly_where_its_number_is_below_p(p: float) -> None:
    edge = int(Fraction(p) * 2**53)
    for k in range(max(edge - 2, 0), min(edge + 3, 2**53)):
        for unused in (0, 2**11 - 1, 0b10110011010):
            generator = generator_giving(k >> 32 | unused << 21, k & WORD)
            state = generator.get_state()
            below = Fraction(k, 2**53) < Fraction(p)
            assert mersenne.draw_bits(1, p, generator).tolist() == [below]
            if mersenne.matches_torch():
                assert draw_as_torch(1, p, generator.set_state(state)).tolist() == [below]


def generator_giving(*words: int) -> torch.Generator:
    """A generator whose next words are these."""
    generator = generator_after(1)
    state = generator.get_state()
    numbers = state.numpy().view(np.uint64)
    place = int(numbers[2])
    numbers[3 + place : 3 + place + len(words)] = [untempered(word) for word in words]
    return generator.set_state(state)


def untempered(word: int) -> int:
    """The word of the state that the generator makes `word` of."""
    for shift, mask in ((-18, WORD), (15, 0xEFC60000), (7, 0x9D2C5680), (-11, WORD)):
        # x = word ^ (x shifted): every round makes at least one more bit right.
        x = word
        for _ in range(32):
            x = word ^ ((x << shift if shift > 0 else x >> -shift) & mask)
        word = x
    return word


def test_the_normal_distributions_part_of_the_state_stays() -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    # Normal numbers come in pairs, and the second one waits for the next call.
    torch.empty(1, dtype=torch.float64).normal_(generator=generator)
    torch.empty(1, dtype=torch.float32).normal_(generator=generator)
    before = generator.get_state()
    mersenne.draw_bits(1000, 0.5, generator)
    after = generator.get_state()
    words = slice(8, 8 * (3 + WORDS))
    assert not torch.equal(before[words], after[words])
    before[words] = after[words]
    assert torch.equal(before, after)


def test_threads_that_draw_from_one_generator_share_its_numbers() -> None:
    # Large enough for draws to overlap where nothing keeps them apart.
    draws, numel = 40, 200_000
    together, alone = generator_after(1), generator_after(1)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: mersenne.draw_bits(numel, 0.5, together).numpy().tobytes(), range(draws)))
    expected = [mersenne.draw_bits(numel, 0.5, alone).numpy().tobytes() for _ in range(draws)]
    assert sorted(drawn) == sorted(expected)
    assert torch.equal(together.get_state(), alone.get_state())


def test_ours_are_taken_for_torchs_exactly_where_torch_draws_with_the_twister() -> None:
    ours, theirs = generator_after(1), generator_after(1)
    same = np.array_equal(draw_as_numpy(5000, 0.3, ours), draw_as_torch(5000, 0.3, theirs))
    before = torch.get_rng_state()
    assert mersenne.matches_torch.__wrapped__() == same
    assert torch.equal(torch.get_rng_state(), before)


def skips_a_number(numel: int, p: float, generator: torch.Generator) -> torch.Tensor:
    torch.empty(1, dtype=torch.float64).uniform_(generator=generator)
    return cpu.pack_mask(torch.empty(numel, dtype=torch.int32).bernoulli_(p, generator=generator))


def forgets_the_state(numel: int, p: float, generator: torch.Generator) -> torch.Tensor:
    return cpu.pack_mask(torch.empty(numel, dtype=torch.int32).bernoulli_(p, generator=generator.clone_state()))


@pytest.mark.parametrize("draw", [skips_a_number, forgets_the_state])
def test_other_numbers_or_another_state_are_noticed(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mersenne, "draw_bits", draw)
    assert not mersenne.matches_torch.__wrapped__()


@pytest.mark.parametrize("ours", [pytest.param(True, marks=torchs), False])
def test_a_mask_is_torchs_whoever_draws_it(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mersenne, "matches_torch", lambda: ours)
    if not ours:
        monkeypatch.delattr(mersenne, "draw_bits")
    one, other = generator_after(1), generator_after(1)
    for numel in SIZES:
        check(draw_mask(numel, 0.3, one), draw_as_torch(numel, 0.3, other))
        assert torch.equal(one.get_state(), other.get_state())

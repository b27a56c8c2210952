"""Draws of torch's CPU generator, MT19937 (Matsumoto and Nishimura, TOMACS 1998), as bits without a tensor of numbers.

For every element `Tensor.bernoulli_` takes two words of 32 bits and makes of their lowest 53 bits, the first word's
above the second's, an integer k; the element is 1 where k 2**-53 < p. On an Intel CPU a torch built with MKL takes
other numbers altogether.
"""

from __future__ import annotations

import math
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actbench.quant.cpu.loops import Bytes, Words, compiled, pack
from actbench.quant.layout import mask_bytes

LongWords = npt.NDArray[np.uint64]

_WORDS = 624
_AHEAD = 397
_BEHIND = _WORDS - _AHEAD
_TOP = np.uint32(0x80000000)
_REST = np.uint32(0x7FFFFFFF)
_TWIST = np.uint32(0x9908B0DF)
_TEMPER_B = np.uint32(0x9D2C5680)
_TEMPER_C = np.uint32(0xEFC60000)
_ZERO = np.uint32(0)
_ONE = np.uint32(1)
_HIGH_BITS = np.uint64(2**21 - 1)
_WORD_BITS = np.uint64(32)
_PRECISION = 53

# A generator's state as torch hands it out: the seed; two int32, of which the first is one more than the words left;
# the next word's place; the words, 64 bits each as all but the two. What follows belongs to the normal distribution.
_LEFT = 2
_NEXT = 2
_FIRST_WORD = 3

_PIECE = 1024
"""Elements drawn at a time: their words, the generator's and a byte each stay in the first-level cache."""

_drawing = threading.Lock()
"""Held from reading a generator's state to setting it, so that of two threads neither takes back the other's draws."""


def draw_bits(numel: int, p: float, generator: torch.Generator) -> Tensor:
    """Bits that are 1 with probability `p` in [0, 1]: uint8 [⌈numel/8⌉], lowest first, the last byte filled with zeros.

    They are those that `torch.empty(numel).bernoulli_(p, generator=generator)` draws where `matches_torch()`, and leave
    the generator as that does. Torch itself must not draw from it in another thread meanwhile: such draws may be
    repeated.
    """
    packed = torch.empty(mask_bytes(numel), dtype=torch.uint8, device="cpu")
    if numel == 0:
        return packed
    # k 2**-53 < p and k < p 2**53 are one: k has 53 bits, so both products are exact, a power of 2 moving the exponent
    # alone. As k is whole, it is below p 2**53 where it is below the next whole number.
    threshold = np.uint64(math.ceil(math.ldexp(p, _PRECISION)))
    with _drawing:
        state = generator.get_state()
        fields = state.numpy().view(np.uint64)
        halves = fields.view(np.int32)
        words = fields[_FIRST_WORD : _FIRST_WORD + _WORDS]
        spent = _draw(words, _WORDS + 1 - int(halves[_LEFT]), threshold, numel, packed.numpy())
        halves[_LEFT], fields[_NEXT] = _WORDS + 1 - spent, spent
        generator.set_state(state)
    return packed


@cache
def matches_torch() -> bool:
    """Whether `draw_bits` draws on this machine, and with this torch, what torch draws."""
    ours, torchs = torch.Generator("cpu").manual_seed(1), torch.Generator("cpu").manual_seed(1)
    for numel, p, dtype in (
        (3, 0.5, torch.int32),
        (_PIECE + 5, 0.1, torch.float32),
        (1, 0.9, torch.int32),
        (2 * _WORDS, 1 / 3, torch.float32),
    ):
        bits = draw_bits(numel, p, ours)
        drawn = torch.empty(numel, dtype=dtype, device="cpu").bernoulli_(p, generator=torchs)
        if not np.array_equal(bits.numpy(), np.packbits(drawn.numpy() != 0, bitorder="little")):
            return False
        if not torch.equal(ours.get_state(), torchs.get_state()):
            return False
        for generator in (ours, torchs):
            # One word of 32 bits, so that the next pair begins at an odd one.
            torch.empty(1, dtype=torch.float32, device="cpu").uniform_(generator=generator)
    return True


@compiled
def _draw(longs: LongWords, spent: int, threshold: Any, numel: int, packed: Bytes) -> int:
    """Bits of k < `threshold`; moves the state `longs` on and returns how many of its words are spent."""
    state = np.empty(_WORDS, np.uint32)
    for i in range(_WORDS):
        state[i] = np.uint32(longs[i])
    words = np.empty(2 * _PIECE, np.uint32)
    code = np.empty(_PIECE, np.uint8)
    for start in range(0, numel, _PIECE):
        stop = min(start + _PIECE, numel)
        ready, wanted = 0, 2 * (stop - start)
        while ready < wanted:
            if spent == _WORDS:
                _twist(state)
                spent = 0
            count = min(_WORDS - spent, wanted - ready)
            _temper(state[spent : spent + count], words[ready : ready + count])
            spent += count
            ready += count
        for i in range(stop - start):
            high, low = np.uint64(words[2 * i]) & _HIGH_BITS, np.uint64(words[2 * i + 1])
            code[i] = 1 if (high << _WORD_BITS | low) < threshold else 0
        code[stop - start : (stop - start + 7) // 8 * 8] = 0
        pack(code, 1, packed[start // 8 : (stop + 7) // 8])
    for i in range(_WORDS):
        longs[i] = np.uint64(state[i])
    return spent


@compiled
def _twist(state: Words) -> None:
    """The next 624 words; no loop reads what it wrote within the last 227 rounds, so it has a vector form."""
    for i in range(_BEHIND):
        state[i] = _mixed(state[i], state[i + 1], state[i + _AHEAD])
    for i in range(_BEHIND, _WORDS - 1):
        state[i] = _mixed(state[i], state[i + 1], state[i - _BEHIND])
    state[_WORDS - 1] = _mixed(state[_WORDS - 1], state[0], state[_AHEAD - 1])


@compiled
def _mixed(word: Any, following: Any, far: Any) -> Any:
    return far ^ (word & _TOP | following & _REST) >> _ONE ^ (_TWIST if following & _ONE else _ZERO)


@compiled
def _temper(state: Words, words: Words) -> None:
    for i in range(state.size):
        word = state[i]
        word ^= word >> np.uint32(11)
        word ^= word << np.uint32(7) & _TEMPER_B
        word ^= word << np.uint32(15) & _TEMPER_C
        words[i] = word ^ word >> np.uint32(18)

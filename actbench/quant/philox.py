"""Philox 4x32-10, the counter-based random numbers of every backend (Salmon et al., SC 2011, section 3.3).

A number depends on (seed, stream, element) alone. The key is the 64-bit seed, low word first; the counter is
(i low, i high, stream low, stream high), i the number of the 128-bit group that the element falls into. Rounding
takes a word, so 4 elements, from each group; signs take a bit, so 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(seed: int, stream: int, first: int, count: int, device: torch.device) -> Tensor:
    """Groups `first` … `first + count - 1` of a stream: int64 [count, 4], each entry a 32-bit word."""
    group = torch.arange(first, first + count, dtype=torch.int64, device=device)
    a, b = group & _WORD, group >> 32 & _WORD
    c = torch.full_like(group, stream & _WORD)
    d = torch.full_like(group, stream >> 32 & _WORD)
    key_low, key_high = seed & _WORD, seed >> 32 & _WORD
    for _ in range(_ROUNDS):
        # int64 products wrap, which leaves the 64 bits of the unsigned product in place.
        product_a, product_c = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a = (product_c >> 32 & _WORD).bitwise_xor_(b).bitwise_xor_(key_low)
        c = (product_a >> 32 & _WORD).bitwise_xor_(d).bitwise_xor_(key_high)
        b, d = product_c.bitwise_and_(_WORD), product_a.bitwise_and_(_WORD)
        key_low, key_high = key_low + _WEYL[0] & _WORD, key_high + _WEYL[1] & _WORD
    return torch.stack((a, b, c, d), dim=1)


def uniform(seed: int, stream: int, first: int, count: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) of elements `first` … `first + count - 1`, multiples of 2**-24: float32 [count].

    `first` must be a multiple of 4, so that a group never straddles two calls.
    """
    words = philox(seed, stream, first // 4, -(-count // 4), device)
    return (words.flatten()[:count] >> 8).to(torch.float32).mul_(2.0**-24)


def signs(seed: int, stream: int, count: int, device: torch.device) -> Tensor:
    """Fair signs ±1 of elements 0 … count - 1: float32 [count]; a set bit, lowest first, is -1."""
    words = philox(seed, stream, 0, -(-count // 128), device)
    bits = words.unsqueeze(-1) >> torch.arange(32, device=device) & 1
    return 1.0 - 2.0 * bits.flatten()[:count].to(torch.float32)

"""What tensors hold, as 64-bit sums: equal for equal content, for any other but once in some 2**32 cases not.

A version counter does not see what is written by way of another tensor's memory; these sums do. They are multilinear
hashes modulo 2**64 (Lemire and Kaser, arXiv 1202.4961, sections 2 and 5), with weights mixed from positions. This is
the oracle in plain torch, on any device; on a CPU `content_loops.py` gives the same sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actbench.quant.cpu import backend as cpu
from actbench.quant.cpu import content_loops
from actbench.quant.cpu.content_loops import FIRST_FACTOR, PAIR_FACTOR, RUN, SECOND_FACTOR
from actbench.quant.packed import replaced

_CHUNK = 2**22


def asymmetry_sums(crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
    """What a CSR matrix [N, N] lacks to be its own transpose: int64 [3] on its device.

    aᵀ (M - Mᵀ) b for the matrix M of its values' mixed bits and mixed vectors a and b, 0 where it is; the same of its
    pattern; and how many values differ from the first of their row. The order of a row's entries plays no part.
    `values` [E] are of 2, 4 or 8 bytes.
    """
    if (other := replaced()) is not None:
        return other.asymmetry_sums(crow, col, values)
    if not crow.is_cuda:
        arrays = crow.contiguous(), col.contiguous(), _patterns(values)
        return cpu.share_content(content_loops.asymmetry_sums, arrays, crow.numel() - 1)
    return asymmetry_sums_in_torch(crow, col, values)


def dense_sum(x: Tensor) -> Tensor:
    """That of all of `x`, of 2, 4 or 8 bytes an element and any shape: int64 [1] on its device."""
    if (other := replaced()) is not None:
        return other.dense_sum(x)
    if not x.is_cuda:
        words = _words(x)
        return cpu.share_content(content_loops.dense_sum, (words,), -(-words.numel() // RUN))
    return dense_sum_in_torch(x)


def asymmetry_sums_in_torch(crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
    """`asymmetry_sums`, by torch's own operations."""
    sums = torch.zeros(3, dtype=torch.int64, device=crow.device)
    patterns, crow = _patterns(values), crow.to(torch.int64)
    for first in range(0, patterns.numel(), _CHUNK):
        part, ends = patterns[first : first + _CHUNK], col[first : first + _CHUNK].to(torch.int64)
        places = torch.arange(first, first + part.numel(), device=crow.device)
        rows = torch.searchsorted(crow, places, right=True) - 1
        a, b = _pair(rows)
        c, d = _pair(ends)
        turned = a * d - b * c
        sums[0] += (turned * _mix(part.to(torch.int64))).sum()
        sums[1] += turned.sum()
        sums[2] += (part != patterns[crow[rows]]).sum()
    return sums


def dense_sum_in_torch(x: Tensor) -> Tensor:
    """`dense_sum`, by torch's own operations."""
    total = torch.zeros(1, dtype=torch.int64, device=x.device)
    words = _words(x)
    keys = _mix(torch.arange(RUN, device=x.device)) & 0xFFFFFFFF
    for first in range(0, words.numel(), _CHUNK):
        part = words[first : first + _CHUNK].to(torch.int64) & 0xFFFFFFFF
        part = torch.cat((part, part.new_zeros(-part.numel() % RUN))).view(-1, RUN // 2, 2)
        keyed = part + keys.view(-1, 2) & 0xFFFFFFFF
        runs = torch.arange(first // RUN, first // RUN + part.shape[0], device=x.device)
        total += (_mix(runs) * (keyed[..., 0] * keyed[..., 1]).sum(1)).sum()
    return total


def _patterns(values: Tensor) -> Tensor:
    """The bits of `values` as integers of their size; half-precision floats as float32's."""
    values = values.detach().resolve_neg().contiguous()
    if values.element_size() == 2:
        values = values.to(torch.float32)
    return values.view(torch.int64 if values.element_size() == 8 else torch.int32)


def _words(x: Tensor) -> Tensor:
    return _patterns(x.reshape(-1)).view(torch.int32)


def _mix(n: Tensor) -> Tensor:
    n = (n + 1) * _signed(FIRST_FACTOR)
    n = (n ^ (n >> 29 & 2**35 - 1)) * _signed(SECOND_FACTOR)
    return n ^ (n >> 32 & 2**32 - 1)


def _pair(n: Tensor) -> tuple[Tensor, Tensor]:
    a = _mix(n)
    b = a * _signed(PAIR_FACTOR)
    return a, b ^ (b >> 32 & 2**32 - 1)


def _signed(factor: int) -> int:
    return factor - 2**64 if factor >= 2**63 else factor

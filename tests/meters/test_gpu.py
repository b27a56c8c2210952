"""The meters of device memory against an allocation of known size."""

import time

import pytest
import torch

from actbench.meters import MemoryMeter
from actbench.meters.nvml import SAMPLE_SECONDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

KNOWN_BYTES = 512 * 2**20
# The driver hands out device memory in pages of 2 MiB.
PAGE_BYTES = 2 * 2**20


def test_a_known_allocation_is_seen_by_allocator_and_nvml_alike() -> None:
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    torch.cuda.empty_cache()
    with MemoryMeter(device) as memory:
        time.sleep(10 * SAMPLE_SECONDS)
        allocated, reserved, nvml = memory.peak_allocated(), memory.peak_reserved(), memory.nvml_peak()
        known = torch.empty(KNOWN_BYTES, dtype=torch.uint8, device=device)
        time.sleep(10 * SAMPLE_SECONDS)
        grown = [
            (after.value_bytes or 0) - (before.value_bytes or 0)
            for before, after in (
                (allocated, memory.peak_allocated()),
                (reserved, memory.peak_reserved()),
                (nvml, memory.nvml_peak()),
            )
        ]
        del known
    assert grown[0] == KNOWN_BYTES
    assert KNOWN_BYTES <= grown[1] < KNOWN_BYTES + PAGE_BYTES
    if nvml.value_bytes is None:
        pytest.skip(f"no figure of NVML's: {nvml.reason}")
    assert KNOWN_BYTES <= grown[2] < KNOWN_BYTES + 2 * PAGE_BYTES

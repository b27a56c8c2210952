import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actbench.quant import Packing, pack_mask, quantize
from actbench.quant.layout import Layout, mask_bytes, projected_width
from actbench.scheme import BITS, Block, Scheme


@given(
    st.integers(0, 700), st.integers(1, 40), st.sampled_from(BITS), st.builds(Block, st.integers(1, 300), st.booleans())
)
def test_layout_counts_what_the_quantizer_makes(rows: int, width: int, bits: int, block: Block) -> None:
    scheme = Scheme("exact", bits, block)
    packing = Packing.of(torch.Size((rows, width)), torch.float32, scheme)
    packed = quantize(torch.zeros(rows, width), packing, 0, 0)
    assert packing.layout.total_bytes == sum(t.untyped_storage().nbytes() for t in packed)


@given(st.integers(0, 10_000))
def test_mask_takes_a_bit_an_element(numel: int) -> None:
    assert pack_mask(torch.zeros(numel, dtype=torch.bool)).numel() == mask_bytes(numel) == (numel + 7) // 8


@pytest.mark.parametrize(("width", "ratio", "projected"), [(128, 8, 16), (7, 8, 1), (500, 8, 63), (128, 1, 128)])
def test_projected_width_is_rounded_up(width: int, ratio: int, projected: int) -> None:
    assert projected_width(width, ratio) == projected


def test_more_than_two_to_the_31_elements() -> None:
    layout = Layout(numel=2**33 + 1, block_length=1024, bits=2)
    assert layout.blocks == 2**23 + 1
    assert layout.code_bytes == 2**31 + 1

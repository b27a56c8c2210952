"""A backend of the quantizer for which tensors are shapes: it allocates what the others do and rounds nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from actbench.quant import reference
from actbench.quant.content import asymmetry_sums_in_torch, dense_sum_in_torch
from actbench.quant.layout import BlockCode, mask_bytes

Unseen = Callable[[], AbstractContextManager[None]]


class Shapes:
    """The backend's functions. Values are 0, but those of forward, which are what they are.

    What happens in an `unseen` context allocates nothing. `fits` says whether the product that is about to be packed is
    not written to memory. `expect` is told of how many bytes bits will be, `sum_words` of how many words are summed.
    """

    def __init__(
        self,
        unseen: Unseen,
        fits: Callable[[], bool],
        expect: Callable[[Callable[..., int], int], None],
        sum_words: Callable[[int], None],
    ) -> None:
        self._unseen = unseen
        self._fits = fits
        self._expect = expect
        self._sum_words = sum_words

    def quantize(
        self, x: Tensor, code: BlockCode, seed: int, stream: int, broken: object = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, minima and scales."""
        layout = code.layout(x.numel())
        codes = torch.zeros(layout.code_bytes, dtype=torch.uint8, device="cpu")
        minimum = torch.zeros(layout.blocks, dtype=torch.bfloat16, device="cpu")
        return codes, minimum, torch.zeros_like(minimum)

    def project_quantize(
        self,
        x: Tensor,
        projected: int,
        code: BlockCode,
        seed: int,
        sign_stream: int,
        stream: int,
        broken: object = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of x P, which is written to memory meanwhile unless it fits."""
        shape = x.shape[0], projected
        if self._fits():
            with self._unseen():
                u = torch.zeros(shape, device="cpu")
        else:
            u = torch.zeros(shape, device="cpu")
        return self.quantize(u, code, seed, stream)

    def dequantize(
        self,
        codes: Tensor,
        minimum: Tensor,
        scale: Tensor,
        numel: int,
        code: BlockCode,
        dtype: torch.dtype,
    ) -> Tensor:
        """[numel]."""
        return torch.zeros(numel, dtype=dtype, device="cpu")

    def dequantize_unproject(
        self,
        codes: Tensor,
        minimum: Tensor,
        scale: Tensor,
        rows: int,
        width: int,
        projected: int,
        code: BlockCode,
        dtype: torch.dtype,
        seed: int,
        sign_stream: int,
    ) -> Tensor:
        """[rows, width]."""
        return torch.zeros(rows, width, dtype=dtype, device="cpu")

    def projection(
        self, width: int, projected: int, seed: int, stream: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """[width, projected]."""
        return torch.zeros(width, projected, dtype=dtype, device="cpu")

    def quantize_rectified(
        self, x: Tensor, code: BlockCode, seed: int, stream: int, broken: object = None
    ) -> tuple[Tensor, Tensor]:
        """Codes and scales."""
        layout = code.rectified_layout(x.numel())
        codes = torch.zeros(layout.code_bytes, dtype=torch.uint8, device="cpu")
        return codes, torch.zeros(layout.blocks, dtype=torch.bfloat16, device="cpu")

    def dequantize_rectified(
        self,
        codes: Tensor,
        scale: Tensor,
        numel: int,
        code: BlockCode,
        dtype: torch.dtype,
        mask: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """[numel]."""
        return torch.zeros(numel, dtype=dtype, device="cpu")

    def pass_rectified(
        self, gradient: Tensor, codes: Tensor, code: BlockCode, mask: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """As the gradient."""
        return torch.zeros_like(gradient)

    def norm_sums(
        self,
        gradient: Tensor,
        codes: Tensor,
        scale: Tensor,
        code: BlockCode,
        mask: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """[4, C]."""
        return torch.zeros(4, gradient.shape[1], dtype=torch.float64, device="cpu")

    def norm_gradient(
        self,
        gradient: Tensor,
        codes: Tensor,
        scale: Tensor,
        code: BlockCode,
        coefficients: Tensor,
        mask: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """As the gradient."""
        return torch.zeros_like(gradient)

    def pack_positive(self, x: Tensor) -> Tensor:
        """Bits."""
        return self._bits(x.numel())

    def pack_mask(self, mask: Tensor) -> Tensor:
        """Bits, which are what they are: edges are found again by them."""
        packed = self._bits(mask.numel())
        with self._unseen():
            packed.copy_(reference.pack_mask(mask))
        return packed

    def _bits(self, numel: int) -> Tensor:
        self._expect(mask_bytes, numel)
        return torch.zeros(mask_bytes(numel), dtype=torch.uint8, device="cpu")

    def unpack_mask(self, packed: Tensor, numel: int) -> Tensor:
        """What was packed."""
        mask = torch.empty(numel, dtype=torch.bool, device="cpu")
        with self._unseen():
            mask.copy_(reference.unpack_mask(packed, numel))
        return mask

    def keep_where(self, values: Tensor, packed: Tensor) -> Tensor:
        """As the values."""
        return torch.zeros_like(values)

    def scale_where(self, values: Tensor, packed: Tensor, factor: float) -> Tensor:
        """The values times `factor`."""
        return values * factor

    def draw_mask(self, numel: int, p: float, generator: torch.Generator) -> Tensor:
        """Bits."""
        return self._bits(numel)

    def dense_sum(self, x: Tensor) -> Tensor:
        """What it is."""
        self._sum_words(x.numel() * x.element_size() // 4)
        with self._unseen():
            return dense_sum_in_torch(x)

    def asymmetry_sums(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """What they are."""
        with self._unseen():
            return asymmetry_sums_in_torch(crow, col, values)

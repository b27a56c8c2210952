"""What runs instead of torch's functions where the input of each call is kept as a scheme says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from actbench.compress.attention import Aggregate, Edges, aggregate, choose_edges, drop_edges
from actbench.compress.codec import Exact, Kept, Noise, Quantized, Rectified, device_of, is_smaller, keeps_seed
from actbench.compress.forward import Forward
from actbench.compress.functions import Addmm, DrawnMask, Dropout, Elu, LeakyRelu, Linear, Relu, SparseProduct
from actbench.compress.norms import BatchNorm, BatchNormInUnits, InUnits, LayerNorm, Normalized
from actbench.compress.stands import Stand
from actbench.compress.tensors import has_memory, is_parameter
from actbench.compress.watch import Watch
from actbench.compress.witness import Witness
from actbench.quant import pack_mask, pack_positive
from actbench.scheme import RECTIFIED_BITS, Scheme

_COMPRESSIBLE: Final = (torch.float32, torch.float16, torch.bfloat16)


class Rules:
    """A rule for each of `RULED`, by its name, and what they know of the forward pass.

    A rule's parameters are the function itself and the function's own, so that Python binds a call's positional and
    keyword arguments as torch would. It returns None where the stock function keeps nothing worth compressing.
    """

    def __init__(self, scheme: Scheme, seed: int) -> None:
        self.scheme = scheme
        self.seed = seed
        self.seed_apart = 0
        """What this process adds to the seed."""
        self.kept = 0
        """How many tensors have had noise of their own."""
        self.found = False
        """Whether anything was compressed since `begin`."""
        self.watch = Watch()
        self.witness = Witness()
        self.forward = Forward()
        self.calls: Counter[str] = Counter()
        """How many of each operation there were since `begin`."""

    def begin(self, seed_apart: int = 0) -> None:
        """A forward pass begins. Raises `NonFiniteError` if a tensor of an earlier one could not be packed."""
        self.watch.check()
        self.seed_apart, self.found = seed_apart, False
        self.calls.clear()
        if self.scheme.compresses:
            self.witness.begin()

    def end(self) -> None:
        """It has ended: forget its tensors."""
        self.witness.end()
        self.forward.clear()

    def close(self) -> None:
        """Keep what is yet to be kept; before the pass ends well, or a ledger closes."""

    def before(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Any function is about to be called."""

    def after(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """It has returned `out`."""

    def ran(self, func: Callable[..., Any], out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """It ran as it is: the codes of what it keeps in float give way."""
        arguments = *args, *kwargs.values()
        for kept in self.witness.see(func, out, arguments, lambda x: is_parameter(x) or self.forward.is_data(x)):
            self.forward.keep_in_float(kept)

    def next_call(self, operation: str, x: Tensor, width: int | None = None) -> str:
        """Count the next call of `operation`, of `x`, as a matrix if a width is given; what a user reads of it."""
        self.calls[operation] += 1
        shape = list(x.shape) if width is None else [x.numel() // width, width]
        kind = str(x.dtype).removeprefix("torch.")
        return f"the input of {operation} {self.calls[operation]} ({kind} {shape})"

    def noise(self) -> Noise:
        """Random numbers for the next tensor that is kept."""
        self.kept += 1
        return Noise(self.seed + self.seed_apart, self.kept - 1)

    def stays(self, x: Tensor) -> bool:
        """Whether `x` stays as it is whatever is kept, so that a code of it would come on top.

        That are parameters, what operations keep that no rule covers and, but for the papers' schemes, data.
        """
        return self.forward.stays(x) or (self.forward.is_data(x) and not self.scheme.is_papers)

    def codec(self, operation: str, x: Tensor, width: int, projected: bool) -> Quantized | None:
        """How the next call of `operation` keeps its input `x`, as a matrix of `width`; None: as it is.

        It is a call all the same where x stays: which one has which number does not depend on that.
        """
        name, rows = self.next_call(operation, x, width), x.numel() // width
        scheme = self.scheme.for_call(operation, self.calls[operation])
        ratio = scheme.projection if projected else 1
        if self.stays(x) or not scheme.compresses or not is_smaller(rows, width, x.dtype, scheme, ratio):
            return None
        self.found = True
        return Quantized.of(rows, width, x.dtype, scheme, self.noise(), ratio, name, self.watch)

    def keep_input(self, operation: str, x: Tensor, projected: bool, rows: int | None = None) -> Kept | None:
        """What the next call of `operation` keeps of its input `x`, a matrix of `rows`; None: x itself.

        Without `rows` its last dimension is the matrix's width.
        """
        width = x.shape[-1] if rows is None else x.numel() // rows
        codec = self.codec(operation, x, width, projected)
        return None if codec is None else Kept.by(codec, x.reshape(-1, width))

    def linear(
        self, func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor | None:
        """`F.linear`: the input kept as the scheme says."""
        if not (compressible(input) and is_layer(weight, bias)):
            return None
        kept = self.keep_input("linear", input, projected=True)
        return self._product(func, True, kept, input, weight, bias) if kept else None

    def matmul(self, func: Callable[..., Tensor], input: Any, other: Any, operation: str = "matmul") -> Tensor | None:
        """A product with a weight: the input kept as the scheme says."""
        # Of two activations neither is known to be the one whose noise is harmless.
        if not (_is_weight(other) and compressible(input) and input.dim() > 1):
            return None
        kept = self.keep_input(operation, input, projected=True)
        return self._product(func, False, kept, input, other, None) if kept else None

    def _product(
        self,
        func: Callable[..., Tensor],
        transposed: bool,
        kept: Kept,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        stand = Stand(kept.tensors, kept.reading)
        out: Tensor = stand.apply(Linear, func, transposed, Kept(stand, kept.tensors), x, weight, bias)
        if x.requires_grad or self.forward.made(x):
            self.forward.stand_for(x, stand)
        return out

    def mm(self, func: Callable[..., Tensor], input: Any, mat2: Any) -> Tensor | None:
        """As `matmul`."""
        return self.matmul(func, input, mat2, "mm")

    def addmm(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        mat1: Tensor,
        mat2: Tensor,
        *,
        beta: float = 1,
        alpha: float = 1,
    ) -> Tensor | None:
        """`torch.addmm` with a weight: the input kept as the scheme says."""
        if not (_is_weight(mat2) and compressible(mat1) and input.layout == torch.strided):
            return None
        kept = self.keep_input("addmm", mat1, projected=True)
        return apply(Addmm, func, kept, input, mat1, mat2, beta, alpha) if kept else None

    def batch_norm(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """`F.batch_norm`: the input kept quantized.

        A row is one of N. In the input's own units, where channels differ, it is a channel of that if it has several.
        """
        needed = any(t is not None and t.requires_grad for t in (input, weight))
        if not (needed and compressible(input) and input[:, 0].numel() > 1):
            return None
        rows = input.shape[0]
        if self.scheme.is_papers and input.numel() > rows * input.shape[1]:
            rows *= input.shape[1]
        codec = self.codec("batch_norm", input, input.numel() // rows, projected=False)
        if codec is None:
            return None
        statistics = running_mean, running_var, training
        found = Normalized.of(input, weight, bias, *statistics, momentum, eps)
        if not self.scheme.is_papers:
            return self.batch_norm_in_units(codec, found, input, weight, bias, *statistics, eps)
        kept = Kept.by(codec, input.reshape(codec.packing.shape))
        return apply(BatchNorm, kept, found, input, weight, bias, *statistics, eps)

    def batch_norm_in_units(
        self,
        codec: Quantized,
        found: Normalized,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
    ) -> Tensor:
        """What F.batch_norm `found`, with x̂ kept by `codec` in the units of each channel."""
        statistics = running_mean, running_var, training, eps
        with torch.no_grad():
            kept = InUnits.of_channels(codec, input, found, *statistics)
        return apply(BatchNormInUnits, kept, found.out, input, weight, bias, *statistics)

    def torch_batch_norm(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor | None:
        """As `batch_norm`."""
        return self.batch_norm(func, input, running_mean, running_var, weight, bias, training, momentum, eps)

    def relu(self, func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor | None:
        """`F.relu`: a bit an element kept, of where the result is not 0.

        FP32's backward asks that, too, so that a NaN's gradient passes there as here.
        """
        if not (compressible(input) and input.requires_grad):
            return None
        self.found = True
        with torch.no_grad():
            positive = pack_positive(input.resolve_neg())
        stand = Stand((positive,))
        out: Tensor = stand.apply(Relu, input, inplace, positive, stand)
        self.forward.stand_for(out, stand)
        return out

    def relu_(self, func: Callable[..., Tensor], input: Tensor) -> Tensor | None:
        """As `relu`."""
        return self.relu(func, input, inplace=True)

    def leaky_relu(
        self, func: Callable[..., Tensor], input: Tensor, negative_slope: float = 0.01, inplace: bool = False
    ) -> Tensor | None:
        """`F.leaky_relu`: a bit an element kept."""
        # In place and below 0 torch itself refuses backward.
        if not (compressible(input) and input.requires_grad) or (inplace and negative_slope < 0):
            return None
        if self.forward.keeps_in_float(input):
            return None
        self.found = True
        with torch.no_grad():
            above = pack_mask(input > 0)
        return apply(LeakyRelu, input, negative_slope, inplace, above)

    def leaky_relu_(self, func: Callable[..., Tensor], input: Tensor, negative_slope: float = 0.01) -> Tensor | None:
        """As `leaky_relu`."""
        return self.leaky_relu(func, input, negative_slope, inplace=True)

    def elu(
        self, func: Callable[..., Tensor], input: Tensor, alpha: float = 1.0, inplace: bool = False
    ) -> Tensor | None:
        """`F.elu`: a code kept of what it made of values below 0."""
        if not (compressible(input) and input.requires_grad and alpha > 0) or self.forward.keeps_in_float(input):
            return None
        codec = self.rectified("elu", input)
        if codec.bytes >= input.numel() * input.element_size():
            return None
        self.found = True
        out = func(input.detach(), alpha)
        codes = codec.pack(-out)
        stand = Stand(codes)
        result: Tensor = stand.apply(Elu, input, alpha, inplace, [out], codec.rectifier, codes, stand)
        self.forward.stand_for(result, stand)
        return result

    def elu_(self, func: Callable[..., Tensor], input: Tensor, alpha: float = 1.0) -> Tensor | None:
        """As `elu`."""
        return self.elu(F.elu, input, alpha, inplace=True)

    def rectified(self, operation: str, x: Tensor) -> Rectified:
        """The codec of what is positive in what the next call of `operation` makes of `x`."""
        scheme, noise, name = self.scheme, self.noise(), self.next_call(operation, x)
        if scheme.bits not in RECTIFIED_BITS:
            scheme = replace(scheme, bits=2, overrides=())
        return Rectified.of(x.shape, x.dtype, scheme, noise, name, self.watch)

    def layer_norm(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """`F.layer_norm`: the input kept quantized in the units of each row, by the papers' schemes too."""
        needed = any(t is not None and t.requires_grad for t in (input, weight))
        shape = tuple(normalized_shape)
        if not (needed and compressible(input) and shape == input.shape[input.dim() - len(shape) :]):
            return None
        # Autocast has a dtype of its own for it, and the papers know no norm of data.
        if torch.is_autocast_enabled(input.device.type) or self.forward.is_data(input):
            return None
        codec = self.codec("layer_norm", input, input.shape[-1], projected=False)
        if codec is None:
            return None
        with torch.no_grad():
            out, mean, inverse_std = torch.native_layer_norm(input, shape, weight, bias, eps)
            kept = InUnits.of_rows(codec, input, len(shape), mean, inverse_std)
        return apply(LayerNorm, kept, [out], input, shape, weight, bias)

    def torch_layer_norm(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> Tensor | None:
        """As `layer_norm`."""
        return self.layer_norm(func, input, normalized_shape, weight, bias, eps)

    def dropout(
        self, func: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor | None:
        """`F.dropout` in training: a bit or a seed kept."""
        if not (training and 0 < p < 1 and compressible(input) and input.requires_grad):
            return None
        self.found = True
        mask = self.mask(input, p, inplace)
        with torch.no_grad():
            out, kept = mask.draw(input)
        return apply(Dropout, input, inplace, [out], mask, kept)

    def mask(self, input: Tensor, p: float, inplace: bool) -> DrawnMask:
        """The mask of a dropout of `input`, kept as the scheme says."""
        return DrawnMask(input, p, inplace, keeps_seed(input.numel(), self.scheme, device_of(input)))

    def torch_dropout(self, func: Callable[..., Tensor], input: Tensor, p: float, train: bool) -> Tensor | None:
        """As `dropout`."""
        return self.dropout(func, input, p, train)

    def torch_dropout_(self, func: Callable[..., Tensor], input: Tensor, p: float, train: bool) -> Tensor | None:
        """As `dropout`."""
        return self.dropout(func, input, p, train, inplace=True)

    def sparse_product(
        self, func: Callable[..., Tensor], sparse: Tensor, dense: Tensor, reduce: str | None = None
    ) -> Tensor | None:
        """`torch.sparse.mm` with a reduction: the adjacency kept alone."""
        # Without `reduce` torch keeps the sparse matrix alone already.
        if reduce not in ("sum", "mean") or sparse.layout != torch.sparse_csr or sparse.requires_grad:
            return None
        if not (compressible(dense) and dense.requires_grad):
            return None
        return apply(SparseProduct, func, False, sparse, dense, reduce)

    def drop_edges(self, func: Callable[..., Edges], edges: Edges, p: float) -> Edges:
        """`drop_edges`: a bit an edge kept."""
        self.found = True
        chosen = choose_edges(edges, p)
        return Edges.subset(edges.crow, edges.col, chosen, pack_mask(chosen))

    def aggregate(self, func: Callable[..., Tensor], edges: Edges, coefficients: Tensor, x: Tensor) -> Tensor | None:
        """`aggregate`: x kept as the scheme says, not projected."""
        if not (compressible(x) and coefficients.requires_grad):
            return None
        kept = self.keep_input("aggregate", x, projected=False, rows=x.shape[0])
        return apply(Aggregate, edges, coefficients, x, kept or Kept(Exact(), (x,)))


RULED: Final[dict[Callable[..., Any], str]] = {
    F.linear: "linear",
    torch.matmul: "matmul",
    Tensor.matmul: "matmul",
    Tensor.__matmul__: "matmul",
    torch.mm: "mm",
    Tensor.mm: "mm",
    torch.addmm: "addmm",
    Tensor.addmm: "addmm",
    F.batch_norm: "batch_norm",
    torch.batch_norm: "torch_batch_norm",
    F.layer_norm: "layer_norm",
    torch.layer_norm: "torch_layer_norm",
    F.relu: "relu",
    torch.relu: "relu",
    Tensor.relu: "relu",
    torch.relu_: "relu_",
    Tensor.relu_: "relu_",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu_",
    F.elu: "elu",
    F.elu_: "elu_",
    F.dropout: "dropout",
    torch.dropout: "torch_dropout",
    torch.dropout_: "torch_dropout_",
    torch.sparse.mm: "sparse_product",
    drop_edges: "drop_edges",
    aggregate: "aggregate",
}
"""The functions that there are rules for, and the rules' names."""


def is_layer(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are a linear layer's, and its input is kept: a matrix that is trained, and a row if anything."""
    row = bias is None or bias.dim() < 2
    return row and weight.requires_grad and weight.dim() == 2 and weight.numel() > 0


def _is_weight(matrix: Any) -> bool:
    """Whether `matrix` [D, H] is a trained Parameter or a view of one: its transpose, or one of several in a stack."""
    trained = has_memory(matrix) and matrix.requires_grad and matrix.dim() == 2 and matrix.numel() > 0
    return trained and is_parameter(matrix)


def compressible(x: Any) -> bool:
    """Whether `x` has values that one of the quantizer's backends can pack."""
    return has_memory(x) and x.dtype in _COMPRESSIBLE and x.numel() > 0


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """The result of an autograd function of ours."""
    out: Tensor = function.apply(*arguments)
    return out

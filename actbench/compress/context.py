"""`compress`: a context in which less is kept for backward."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Module

from actbench.compress.derivation import Derivation
from actbench.compress.interception import Compression, open_compressions, own_seed
from actbench.compress.offload import Offload
from actbench.compress.recomputation import Output, recompute
from actbench.compress.torch_internals import uncompiled
from actbench.errors import SchemeError
from actbench.scheme import Scheme


@uncompiled
def compress(scheme: Scheme | str, seed: int | None = None, resident: Iterable[Tensor] = ()) -> Compression:
    """A context in which forward passes keep activations as `scheme` says.

    `scheme` is a `Scheme` or its text. All projection and rounding noise comes from `seed`; without one it is made
    from `torch.initial_seed()`, a count of contexts and the process's rank in `torch.distributed`, and never drawn from
    torch's generators. Results of forward do not change, but under `bf16`. The innermost of nested contexts decides; a
    context is open once at a time. Raises `SchemeError` for an invalid text.

    Under a derived scheme the gradient by what a batch norm, ReLU or sparse product returns passes that tensor by if
    nobody holds it any more in backward: a hook on such a one comes before its first use.

    Equal seeds give equal noise: in a training loop give none, or enter one context again and again. A backward pass
    with `create_graph` is refused with an error. What `torch.utils.checkpoint` covers runs again in backward and keeps
    what it keeps in FP32. A copy of a context, or one that another process gets, is closed; where no seed was given it
    has one of its own.

    The schemes that quantize nothing change what surrounds the model. `bf16` is torch's autocast; products with a
    sparse matrix stay FP32, which a CPU alone could not do otherwise. `checkpoint` recomputes what the model passes to
    `run_layer`, and `offload` moves to host memory what is kept on a GPU, but for what shares storage with `resident`:
    parameters, buffers and graph data that stay there anyway. Leaving the context raises `UsageError` where one of the
    two found nothing to do.
    """
    if isinstance(scheme, str):
        scheme = Scheme.parse(scheme)
    if not isinstance(scheme, Scheme):
        raise SchemeError(
            f"{scheme!r} is no scheme: give its text, as actbench.compress('derived'), or 'fp32' for none at all."
        )
    # Also numpy's integers and torch's, which 2**64 is too large for.
    number = own_seed() if seed is None else operator.index(seed) % 2**64
    if scheme.derives:
        context: Compression = Derivation(scheme, number)
    else:
        context = Compression(scheme, number, Offload(resident) if scheme.name == "offload" else None)
    context.of_this_process = seed is None
    return context


def run_layer(module: Module, function: Callable[..., Output], *inputs: Tensor) -> Output:
    """`function(*inputs)`, a layer of `module`: under `checkpoint` its inputs are kept and it runs again in backward.

    All that it reads of changing tensors must be its inputs or `module`'s parameters and buffers.
    """
    innermost = open_compressions()[-1] if open_compressions() else None
    if innermost is None or innermost.scheme.name != "checkpoint":
        return function(*inputs)
    innermost.found = True
    return recompute(module, function, *inputs) if torch.is_grad_enabled() else function(*inputs)

"""Backward functions that have no derivative of their own, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from actbench.errors import UsageError

Backward = Callable[..., Any]


def first_order(backward: Backward) -> Backward:
    """`backward` of an autograd function, which raises `UsageError` in a pass that is to be differentiated again.

    Torch's `once_differentiable` raises only if a gradient that comes in requires one itself. Where all are constants,
    as behind a piecewise linear network, it returns gradients without a graph and says nothing.
    """

    @wraps(backward)
    def guarded(ctx: Any, *gradients: Any) -> Any:
        # The engine has gradients on in a pass with `create_graph`, and in no other.
        if torch.is_grad_enabled():
            raise UsageError(
                "backward with create_graph=True has come to an operation of actbench that has no second derivative: "
                "open actbench.compress('fp32') around torch's own layers there, or leave create_graph out."
            )
        return backward(ctx, *gradients)

    return guarded

"""How a call of a torch function comes to the rule for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from actbench.compress.rules import RULED, Rules
from actbench.compress.torch_internals import backward_pass, in_checkpoint, in_transform, uncompiled


@uncompiled
def dispatch(
    rules: Rules, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], innermost: bool
) -> Any:
    """What `func` returns, by one of `rules` or as it is; they see the call before and after.

    A rule runs in the `innermost` of the open contexts alone.
    """
    rules.before(func, args, kwargs)
    out = _ruled(rules, func, args, kwargs) if innermost and torch.is_grad_enabled() else None
    ruled = out is not None
    if not ruled:
        out = func(*args, **kwargs)
    rules.forward.note_made(func, out, args, kwargs)
    if not ruled and torch.is_grad_enabled():
        rules.ran(func, out, args, kwargs)
    rules.after(out, args, kwargs)
    return out


def _ruled(rules: Rules, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the rule for `func` makes of the call; None if there is none, or none for such a call here."""
    name = RULED.get(func)
    if name is None or not _can_keep_less():
        return None
    rule = getattr(type(rules), name)
    return rule(rules, func, *args, **kwargs) if _fits(rule, (rules, func, *args), kwargs) else None


def _can_keep_less() -> bool:
    """Whether what is called now will have a backward pass that may be ours."""
    # Run again in backward (torch.utils.checkpoint), a call would be packed with noise of its own and read with that of
    # the first time. Kept as it is, torch sees that it is not what was kept then.
    if backward_pass() != -1 or in_checkpoint():
        return False
    # Functions of ours have no forward-mode derivative, and a transform of torch.func has tensors without memory, which
    # the quantizer cannot read.
    return not in_transform()


def _fits(rule: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call has only arguments that the rule knows; `out=` and the like are left to torch."""
    try:
        _signature(rule).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


@cache
def _signature(rule: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(rule)

"""Networks of a user's, named as pkg.file:Net."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from torch.nn import Module

from actbench.errors import UsageError


def load_module(text: str) -> Callable[[int, int], Module]:
    """What makes the network that `text` names, of so many features and classes, from the current folder or an
    installed package.

    Raises `UsageError`, one sentence, if there is none, and so does what it returns if it makes none.
    """
    file, colon, name = text.partition(":")
    if not (colon and file and name.isidentifier()):
        raise UsageError(
            f"--module {text} names no network: write pkg.file:Net, as models.sage:Net for models/sage.py."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(file), name)
    except ModuleNotFoundError as error:
        raise UsageError(f"--module {text}: there is no {error.name}; look from the folder that it lies in.") from error
    except AttributeError as error:
        raise UsageError(f"--module {text}: {file} has no {name}.") from error
    except Exception as error:
        raise UsageError(f"--module {text}: {file} cannot be imported ({_told(error)}).") from error

    def make(features: int, classes: int) -> Module:
        try:
            network = found(features, classes)
        except Exception as error:
            raise UsageError(
                f"--module {text}: {name}(in, out) does not work ({_told(error)}); it is given how many features go in "
                "and how many classes come out."
            ) from error
        if not isinstance(network, Module):
            raise UsageError(f"--module {text}: {name} makes a {type(network).__name__} and no torch.nn.Module.")
        return network

    return make


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"

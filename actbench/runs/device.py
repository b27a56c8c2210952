"""Which device a run takes, and whether all that it needs is there."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Literal

import torch

from actbench.errors import DeviceError
from actbench.meters import describe_environment
from actbench.quant.cuda.sources import cupy_problem
from actbench.scheme import Scheme

Device = Literal["cpu", "cuda"]


def resolve_device(asked: Literal["auto", "cpu", "cuda"]) -> Device:
    """The device to run on: "auto" takes a CUDA GPU if torch sees one and CuPy is installed.

    Raises `DeviceError` for "cuda" where either is missing, and for both where CuPy is of another version than the
    kernels are made for, with what to install.
    """
    if asked == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if asked == "auto" and not (torch.cuda.is_available() and find_spec("cupy")):
        return "cpu"
    raise DeviceError(f"--device {asked} is not possible: {problem}; or take --device cpu.")


def require_device(schemes: Iterable[Scheme], device: Device) -> None:
    """Raise `DeviceError` if one of `schemes` means nothing on `device`."""
    if device == "cpu" and any(scheme.name == "offload" for scheme in schemes):
        raise DeviceError(
            "scheme 'offload' needs a GPU: on a CPU activations are in host memory already; leave it out, or take "
            "--device cuda where there is one."
        )


def _cuda_problem() -> str | None:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        return f"torch {torch.__version__} ({built}) sees no GPU, so check nvidia-smi and the torch build"
    return cupy_problem(torch.version.cuda)


def describe_device(device: Device) -> dict[str, Any]:
    """The environment that a run on `device` has here."""
    return describe_environment(torch.device(device))

"""What a torch upgrade may break stands in one module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actbench.compress import torch_internals

ROOM = Path(torch_internals.__file__).parent
PRIVATE = re.compile(r"torch\.(\w+\.)*_\w+|\._(version|base|is_view|backward_hooks)\b|from torch\S* import .*\b_\w")


@pytest.mark.parametrize("name", sorted(path.name for path in ROOM.glob("*.py")))
def test_no_other_module_uses_torchs_private_parts(name: str) -> None:
    lines = (ROOM / name).read_text().splitlines()
    found = [line for line in lines if PRIVATE.search(line.replace("self._", ""))]
    assert bool(found) == (name == "torch_internals.py"), found

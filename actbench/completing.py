"""Whether a shell asks how a word may go on: it waits at every TAB, so nothing slow is imported then."""

import os
from typing import Final

COMPLETING: Final = "_ACTBENCH_COMPLETE" in os.environ
"""Typer's protocol. torch alone takes seconds to import, and names and options need none of it."""

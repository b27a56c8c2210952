"""Write the goldens anew."""

import json
import sys
from pathlib import Path

from tests.goldens.facts import TABLES

for name, table in TABLES.items():
    if len(sys.argv) < 2 or name in sys.argv[1:]:
        (Path(__file__).parent / f"{name}.json").write_text(json.dumps(table(), indent=0) + "\n")

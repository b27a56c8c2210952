"""What records say together: one row for every scheme, beside the reference."""

from actbench.completing import COMPLETING

if not COMPLETING:
    from actbench.analysis.claims import Claim, compare_claims
    from actbench.analysis.comparison import Comparison, compare, read_located, resolve_reference
    from actbench.analysis.limits import Settings, read_settings
    from actbench.analysis.regression import Verdict, check_records, choose_final
    from actbench.analysis.summary import Row, Table, summarise

__all__ = [
    "Claim",
    "Comparison",
    "Row",
    "Settings",
    "Table",
    "Verdict",
    "check_records",
    "choose_final",
    "compare",
    "compare_claims",
    "read_located",
    "read_settings",
    "resolve_reference",
    "summarise",
]

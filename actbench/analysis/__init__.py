"""What records say together: one row for every scheme, beside the reference."""

from actbench.analysis.summary import Row, Table, summarise

__all__ = ["Row", "Table", "summarise"]

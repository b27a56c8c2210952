"""Summaries for people: tables and progress on a terminal."""

from actbench.report.progress import ProgressListener
from actbench.report.table import datasets_table, ledger_table, render_tables

__all__ = ["ProgressListener", "datasets_table", "ledger_table", "render_tables"]

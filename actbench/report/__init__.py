"""Summaries for people: tables and progress on a terminal."""

from actbench.completing import COMPLETING

if not COMPLETING:
    from actbench.report.claims import claims_table
    from actbench.report.doctor import doctor_table
    from actbench.report.estimate import estimate_table
    from actbench.report.kernels import kernels_table, registers_table
    from actbench.report.progress import ProgressListener
    from actbench.report.table import datasets_table, draw_tables, ledger_table, render_tables
    from actbench.report.terminal import open_stderr, open_stdout
    from actbench.report.verdict import github_annotations, junit_xml, step_summary, verdict_table

__all__ = [
    "ProgressListener",
    "claims_table",
    "datasets_table",
    "doctor_table",
    "draw_tables",
    "estimate_table",
    "github_annotations",
    "junit_xml",
    "kernels_table",
    "ledger_table",
    "open_stderr",
    "open_stdout",
    "registers_table",
    "render_tables",
    "step_summary",
    "verdict_table",
]

"""Records: what makes two the same, the file that keeps them, and how far one of unknown origin is believed."""

from actbench.records.identity import MACHINE_FIELDS, identity, machine, series, settings
from actbench.records.store import SCHEMA_VERSION, Record, RecordFile
from actbench.records.untrusted import (
    FIELDS,
    PEAK_FIELDS,
    is_figure,
    parse_json,
    printable,
    read_limited,
    unusable_field,
)
from actbench.records.whole import replace_file

__all__ = [
    "FIELDS",
    "MACHINE_FIELDS",
    "PEAK_FIELDS",
    "SCHEMA_VERSION",
    "Record",
    "RecordFile",
    "identity",
    "is_figure",
    "machine",
    "parse_json",
    "printable",
    "read_limited",
    "replace_file",
    "series",
    "settings",
    "unusable_field",
]

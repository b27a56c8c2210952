"""A study of schemes on one network at fixed weights, as one JSON document that reports take beside records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actbench.errors import OutputError, UsageError
from actbench.records.identity import series
from actbench.records.untrusted import is_figure, parse_json, printable, read_limited
from actbench.scheme import BITS, LEVELS

KIND: Final = "analysis"
STUDY_VERSION: Final = 1


@dataclass(frozen=True)
class Study:
    """What `actbench analyze` wrote: JSON values as `studies.run_study` returns them, and the file where they stand."""

    document: dict[str, Any]
    file: str

    @property
    def key(self) -> str:
        """Equal for what may share a report: data, model and recipe, whatever the number of epochs."""
        return study_key(self.document)

    def noise_of(self, scheme: str) -> dict[str, Any] | None:
        """The gradient noise of a scheme by its text."""
        found = (each["noise"] for each in self.document["schemes"] if each["scheme"]["name"] == scheme)
        noise: dict[str, Any] | None = next(found, None)
        return noise


def study_key(record: dict[str, Any]) -> str:
    """What a record and a study must have in common: the study's network is trained by FP32, and less long."""
    return series(record, "epochs")


def is_study(path: Path) -> bool:
    """Whether the file is a study; what cannot be read is none."""
    try:
        # A file of records is not read twice: the first line of a study is not a whole value, or is all there is.
        with path.open("rb") as file:
            beginning = file.read(64)
        return b'"kind"' in beginning and f'"{KIND}"'.encode() in beginning
    except OSError:
        return False


def read_study(path: Path) -> Study:
    """The study in `path`; raises `OutputError`, one sentence, if it is damaged."""
    try:
        document = parse_json(read_limited(path))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is no whole analysis: make it again with `actbench analyze`.") from error
    document = printable(document)
    problem = _problem(document)
    if problem:
        raise OutputError(f"{path} has no usable {problem!r}: make it again with `actbench analyze`.")
    return Study(document, printable(str(path)))


def match_studies(studies: Iterable[Study], keys: Iterable[str]) -> dict[str, list[Study]]:
    """Studies by their key; raises `UsageError` for one that is of none of `keys`."""
    known = list(keys)
    by_key: dict[str, list[Study]] = {}
    for study in studies:
        if study.key not in known:
            raise UsageError(
                f"{study.file} analyses {study.document['dataset']} under {study.document['model']} with a recipe that "
                "none of the records have: name records of the same, or leave it out."
            )
        by_key.setdefault(study.key, []).append(study)
    return by_key


Shape = Callable[[Any], bool] | dict[str, Any] | list[Any]
"""What a JSON value must be: a test; an object with at least these fields; or a list of values of one shape."""


def _has_shape(value: Any, shape: Shape) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_has_shape(value.get(name), each) for name, each in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has_shape(each, shape[0]) for each in value)
    return shape(value)


def _optional(shape: Shape) -> Shape:
    return lambda value: value is None or _has_shape(value, shape)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_bits(value: Any) -> bool:
    return is_figure(value) and value in BITS


def _is_positive(value: Any) -> bool:
    return is_figure(value) and value > 0


def _is_error(value: Any) -> bool:
    return is_figure(value) and value >= 0


def _is_length(value: Any) -> bool:
    return _is_positive(value) and isinstance(value, int)


def _is_histogram(value: Any) -> bool:
    return _has_shape(value, [_is_error]) and sum(value) > 0


_ESTIMATE: Final = {"mean": is_figure, "standard_error": _is_error}
_PARTS: Final = ("total", "projection", "rounding", "cross", "bias")
_NOISE: Final = {"share": is_figure, **dict.fromkeys(_PARTS, _ESTIMATE), "own": _optional(_ESTIMATE)}
_LEVELS_FOUND: Final = {
    **dict.fromkeys(("if_uniform", "expected", "measured", "measured_standard_error", "error"), is_figure),
    "if_normal": _optional(is_figure),
}
_CALL: Final = {
    "call": _is_text,
    **dict.fromkeys(("rows", "counted_rows", "width", "rms"), is_figure),
    "block_length": _is_length,
    "projected": _is_truth,
    "bits": _is_bits,
    "histogram": [is_figure],
    "divergence": lambda value: isinstance(value, dict),
    "levels": lambda value: isinstance(value, dict),
    "blocks": [{"length": _is_length, "saved_bytes": is_figure, "error": dict.fromkeys(LEVELS, is_figure)}],
    "normal_over_uniform": _optional(is_figure),
    "worst_column": _optional(is_figure),
}
_COUNTED: Final = {
    "rms": _is_positive,
    "histogram": _is_histogram,
    "divergence": dict.fromkeys(LEVELS, _optional(is_figure)),
    "levels": dict.fromkeys(LEVELS, _LEVELS_FOUND),
}
_LEAST_NORMAL: Final = 3
"""Elements of the shortest block that a clipped normal is of: half of two are at each end."""


def _is_call(value: Any) -> bool:
    """A call whose values were counted, or one in which there was nothing to count."""
    if not _has_shape(value, _CALL):
        return False
    if value["levels"] == {} == value["divergence"]:
        return True
    known = _has_shape(value, _COUNTED) and value["divergence"].keys() >= set(LEVELS)
    return known and (value["block_length"] >= _LEAST_NORMAL or value["divergence"]["clipped-normal"] is None)


def _are_calls(value: Any) -> bool:
    """Calls with errors for equally many block sizes, as one table has them."""
    return _has_shape(value, [_is_call]) and all(0 < len(c["blocks"]) == len(value[0]["blocks"]) for c in value)


_SHAPES: Final[dict[str, Shape]] = {
    "kind": lambda value: value == KIND,
    "study_version": lambda value: value == STUDY_VERSION,
    "dataset": _is_text,
    "digest": _optional(_is_text),
    "model": _is_text,
    "seed": is_figure,
    "recipe": dict.fromkeys(("epochs", "layers", "hidden"), is_figure),
    "environment": {"device_name": _is_text},
    "graph": {"synthetic": _is_truth},
    "unusual": lambda value: isinstance(value, dict),
    "draws": is_figure,
    "rounding_draws": is_figure,
    "schemes": [
        {
            "scheme": {"name": _is_text},
            "saved_bytes": is_figure,
            "noise": {**_NOISE, "tensors": [{"parameter": _is_text, **_NOISE}]},
            "calls": _are_calls,
        }
    ],
}


def _problem(document: Any) -> str | None:
    """The first field that a report could not use."""
    if not isinstance(document, dict):
        return "kind"
    return next((field for field, shape in _SHAPES.items() if not _has_shape(document.get(field), shape)), None)

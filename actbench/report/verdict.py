"""The verdict of a check: a table for a terminal, JUnit XML, GitHub's annotations and its step summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.analysis.limits import Limits
from actbench.analysis.regression import CheckedRow, Finding, Verdict
from actbench.report.phrases import MEBIBYTE, NOTHING, escape_markdown, model_text

_NAMES = {
    "row": "row",
    "seeds": "seeds",
    "status": "status",
    "saved_bytes": "saved bytes",
    "predicted_saved_bytes": "predicted bytes",
    "loss_saved_bytes": "loss's bytes",
    "time": "epoch time",
    "score": "score",
    "loss": "training loss",
    "peak": "whole peak",
    "peak_reserved": "reserved peak",
    "peak_nvml": "NVML peak",
}
_LABELS = {"pass": "ok", "improvement": "improved"}
_STYLES = {
    "regression": "bold red",
    "missing": "bold red",
    "improvement": "green",
    "unclear": "yellow",
    "new": "cyan",
    "pass": "",
}


def headline(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    counts: Counter[str] = Counter(finding.outcome for _, finding in _all(verdict))
    compared = sum(counts[outcome] for outcome in ("pass", "regression", "improvement", "unclear"))
    rows = sum(bool(row.seeds) for row in verdict.rows)
    details = [
        f"{counts[outcome]} {word}"
        for outcome, word in (
            ("improvement", "improved"),
            ("unclear", "unclear"),
            ("missing", "missing"),
            ("new", "new"),
        )
        if counts[outcome]
    ]
    told = f"; {', '.join(details)}" if details else ""
    figures = f"{_count(compared, 'figure')} of {_count(rows, 'row')}"
    if counts["regression"]:
        return f"Regression: {counts['regression']} of {figures} got worse{told}."
    if verdict.failures:
        return f"Incomplete: {_count(counts['missing'], 'part')} of the baseline missing, nothing got worse{told}."
    return f"No regression in {figures}{told}."


def verdict_table(verdict: Verdict) -> RenderableType:
    """The verdict in words, every figure, and a sentence for each that is not simply as it was."""
    parts: list[RenderableType] = [Text(headline(verdict), style="bold red" if verdict.failures else "bold green")]
    for title, rows in _groups(verdict):
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
        grid.add_column("scheme", overflow="fold")
        grid.add_column("figure", no_wrap=True)
        for heading in ("baseline", "new", "change"):
            grid.add_column(heading, justify="right", no_wrap=True)
        grid.add_column("verdict", no_wrap=True)
        for row in rows:
            for i, finding in enumerate(row.findings):
                cells = [row.scheme if i == 0 else "", *_cells(finding)]
                grid.add_row(*map(Text, cells), style=_STYLES[finding.outcome])
        parts += [Text(title, style="bold"), grid]
    parts += [Text(f"{_label(finding)}: {_name(row)} {say(row, finding)}") for row, finding in _notable(verdict)]
    parts.append(Text(_allowed(verdict.settings.limits), style="dim"))
    return Group(*parts)


def junit_xml(verdict: Verdict) -> str:
    """JUnit XML: one test case for every figure of every row, a failure where the check fails for it."""
    findings = list(_all(verdict))
    skipped = [finding for _, finding in findings if finding.outcome == "missing" and verdict.allow_missing]
    counts = {
        "tests": str(len(findings)),
        "failures": str(len(verdict.failures)),
        "errors": "0",
        "skipped": str(len(skipped)),
    }
    root = ElementTree.Element("testsuites", {"name": "actbench check", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "actbench check", **counts})
    for row in verdict.rows:
        place = "/".join(filter(None, (row.dataset, model_text(row.model, row.recipe), row.scheme, _distinction(row))))
        for finding in row.findings:
            names = {"classname": _printable(place), "name": _NAMES[finding.figure]}
            case = ElementTree.SubElement(suite, "testcase", names)
            sentence = _printable(f"{_name(row)} {say(row, finding)}")
            if verdict.is_failure(finding):
                failure = ElementTree.SubElement(case, "failure", {"message": sentence, "type": finding.outcome})
                failure.text = sentence
            elif finding.outcome == "missing":
                ElementTree.SubElement(case, "skipped", {"message": sentence})
            else:
                ElementTree.SubElement(case, "system-out").text = sentence
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def github_annotations(verdict: Verdict) -> list[str]:
    """GitHub's workflow commands, a line each: errors for what fails, notices for what is worth knowing."""
    lines = []
    for row, finding in _notable(verdict):
        level = "error" if verdict.is_failure(finding) else "notice"
        title = f"actbench: {row.scheme}, {_NAMES[finding.figure]}, {_label(finding)}"
        lines.append(f"::{level} title={_escape_property(title)}::{_escape(f'{_name(row)} {say(row, finding)}')}")
    return lines


def step_summary(verdict: Verdict) -> str:
    """Markdown: the verdict, a line for what is not as it was, and the whole table folded away."""
    lines = [f"## actbench check\n\n**{headline(verdict)}**\n"]
    lines += [
        f"- {'❌' if verdict.is_failure(finding) else 'ℹ️'} {escape_markdown(f'{_name(row)} {say(row, finding)}')}"
        for row, finding in _notable(verdict)
    ]
    lines.append("\n<details><summary>All figures</summary>\n")
    for title, rows in _groups(verdict):
        lines.append(f"\n{escape_markdown(title)}\n")
        lines.append("| scheme | figure | baseline | new | change | verdict |\n| --- | --- | --: | --: | --: | --- |")
        for row in rows:
            for finding in row.findings:
                lines.append(f"| {' | '.join(map(escape_markdown, (row.scheme, *_cells(finding))))} |")
    lines.append(f"\n{_allowed(verdict.settings.limits)}\n\n</details>\n\n")
    return "\n".join(lines)


def say(row: CheckedRow, finding: Finding) -> str:
    """What became of the figure, both values included: a sentence whose subject is the row."""
    match finding.figure:
        case "row" if finding.outcome == "new":
            return f"is new: {_count(finding.new, 'run')} that the baseline does not know."
        case "row":
            return f"is missing: {_count(finding.baseline, 'run')} in the baseline and none now."
        case "seeds":
            return (
                f"has {_count(finding.new, 'seed')} of the baseline's {finding.baseline}: "
                f"{finding.detail} {'are' if ',' in (finding.detail or '') else 'is'} missing."
            )
        case "status":
            told = f" ({finding.detail})" if finding.detail else ""
            of = len(row.seeds)
            return f"has {finding.new} of {_count(of, 'run')} ok, {finding.baseline} in the baseline{told}."
    if finding.why == "unmeasured":
        return f"has no {_NAMES[finding.figure]} any more, {_value(finding, finding.baseline)} in the baseline."
    new, old, change = _value(finding, finding.new), _value(finding, finding.baseline), _change(finding)
    allowed = _limit(finding)
    match finding.figure:
        case "saved_bytes":
            return f"keeps {new} bytes for backward instead of {old} ({change}, allowed {allowed})."
        case "predicted_saved_bytes":
            return f"is predicted to keep {new} bytes instead of {old} ({change}, allowed {allowed})."
        case "loss_saved_bytes":
            return f"keeps {new} bytes for the loss's backward instead of {old} ({change}, allowed {allowed})."
        case "time":
            rest = "" if finding.rest_change is None else f", the rest of the run {_percent(finding.rest_change)}"
            told = f"takes {new} an epoch instead of {old} ({change}, allowed {allowed}{_p_value(finding)}{rest})"
            return told + _REMEDIES.get(finding.why or "", ".")
        case "score":
            told = f"scores {new} instead of {old} test {row.metric or 'score'} ({change}, allowed {allowed}"
        case "loss":
            told = f"has a mean training loss of {new} instead of {old} ({change}, allowed {allowed}"
        case _:
            return f"takes {new} at its peak instead of {old} ({change}, allowed {allowed}{_p_value(finding)})."
    if finding.low is None or finding.high is None:
        told += ", one seed has no interval"
    else:
        percent = finding.figure == "loss"
        low, high = (_percent(each) if percent else f"{100 * each:+.2f}" for each in (finding.low, finding.high))
        told += f", interval {low} to {high}"
    told += ")"
    if finding.departed is not None:
        told += f"; it trains differently from epoch {finding.departed} on"
    return told + _REMEDIES.get(finding.why or "", ".")


_REMEDIES = {
    "machine": ", but so did the rest of the run: the machine was slower, or what training shares with evaluation; "
    "measure again.",
    "noise": ", which may be chance: measure more seeds.",
    "one seed": ", but one run says nothing of how much runs differ: measure five seeds.",
    "departed": "; exact_loss allows no difference.",
}


def _all(verdict: Verdict) -> Iterator[tuple[CheckedRow, Finding]]:
    return ((row, finding) for row in verdict.rows for finding in row.findings)


def _notable(verdict: Verdict) -> list[tuple[CheckedRow, Finding]]:
    """What a reader should know of, failures first."""
    told = [(row, each) for row, each in _all(verdict) if each.outcome != "pass" or each.departed is not None]
    return sorted(told, key=lambda pair: not verdict.is_failure(pair[1]))


def _groups(verdict: Verdict) -> list[tuple[str, list[CheckedRow]]]:
    groups: dict[str, list[CheckedRow]] = {}
    for row in verdict.rows:
        recipe = row.recipe
        title = f"{row.dataset} · {model_text(row.model, recipe)}"
        if "layers" in recipe and "hidden" in recipe:
            title += f" {recipe['layers']} x {recipe['hidden']}"
        if "epochs" in recipe:
            title += f" · {_count(recipe['epochs'], 'epoch')}"
        told = _distinction(row, ("layers", "hidden", "epochs"))
        title += f" · {told}" if told else ""
        groups.setdefault(title, []).append(row)
    return list(groups.items())


def _name(row: CheckedRow) -> str:
    told = _distinction(row)
    return f"{row.scheme} ({model_text(row.model, row.recipe)}, {row.dataset}{f', {told}' if told else ''})"


def _distinction(row: CheckedRow, known: tuple[str, ...] = ()) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.distinction.items() if key not in known)


def _label(finding: Finding) -> str:
    if finding.outcome == "pass" and finding.departed is not None:
        return "differs"
    return _LABELS.get(finding.outcome, finding.outcome)


def _cells(finding: Finding) -> list[str]:
    old, new = _value(finding, finding.baseline), _value(finding, finding.new)
    return [_NAMES[finding.figure], old, new, _change(finding), _label(finding)]


def _value(finding: Finding, value: float | None) -> str:
    if value is None:
        return NOTHING
    match finding.figure:
        case "saved_bytes" | "predicted_saved_bytes" | "loss_saved_bytes":
            return f"{value:,.0f}"
        case "time":
            return f"{1000 * value:,.4g} ms"
        case "score":
            return f"{100 * value:.2f} %"
        case "loss":
            return f"{value:.4f}"
        case "peak" | "peak_reserved" | "peak_nvml":
            return f"{value / MEBIBYTE:,.1f} MiB"
        case "status":
            return f"{value} ok"
    return f"{_count(int(value), 'run' if finding.figure == 'row' else 'seed')}"


def _change(finding: Finding) -> str:
    if finding.change is None:
        return ""
    return f"{100 * finding.change:+.2f} pts" if finding.figure == "score" else _percent(finding.change)


def _limit(finding: Finding) -> str:
    if finding.limit is None:
        return NOTHING
    return _points(finding.limit) if finding.figure == "score" else f"{100 * finding.limit:g} %"


def _p_value(finding: Finding) -> str:
    return "" if finding.p_value is None else f", p = {finding.p_value:.2g}"


def _allowed(limits: Limits) -> str:
    percents = (("bytes", limits.saved_bytes), ("epoch time", limits.time), ("training loss", limits.loss))
    told = ", ".join(f"{name} {100 * limit:g} %" for name, limit in (*percents, ("peak", limits.peak)))
    return (
        f"Allowed: {told}, score {_points(limits.score)}; beyond chance at {100 * limits.significance:g} %. "
        "Epoch time: lower quartile after warm-up, mean over runs."
    )


def _points(score: float) -> str:
    return f"{100 * score:g} point{'' if score == 0.01 else 's'}"


def _percent(change: float) -> str:
    return f"{100 * change:+.2f} %"


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    """`text` without the characters that XML has no place for."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _escape(text: str) -> str:
    """A workflow command's message, by the rules of GitHub's own toolkit (actions/core, command.ts)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")

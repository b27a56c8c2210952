"""A verdict as people and machines read it."""

from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

from actbench.analysis.regression import Verdict, check_records
from actbench.report.verdict import github_annotations, headline, junit_xml, step_summary, verdict_table
from tests.analysis.test_regression import example, scored


def drawn(verdict: Verdict, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(verdict_table(verdict))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def worse() -> Verdict:
    """One of everything: more bytes, slower, a lower score, a run that ended early, rows that came and went."""
    large = {"saved_bytes": 953_725_952, "rss_peak_bytes": 1_500_000_000}
    base = [example(scheme, seed, **large) for seed in range(3) for scheme in ("fp32", "exact", "blockwise")]
    new = [example("fp32", seed, **large | {"saved_bytes": 963_263_211}) for seed in range(3)]
    new += [
        example("exact", seed, **large, metrics=scored(0.47), epoch_seconds=[9.0, 9.0, *[0.2] * 10])
        for seed in range(2)
    ]
    error = {"type": "Odd|[Error]", "message": "\x1b[31mno, 100 % *room*", "epoch": 1}
    new += [example("exact", 2, **large, status="oom", metrics=None, error=error)]
    new += [example("blockwise-vm", 0), example("blockwise:bits=4,block=256,projection=4", 0)]
    return check_records(base, new)


def test_a_table_says_the_verdict_first_and_fits_80_columns(worse: Verdict) -> None:
    lines = drawn(worse).splitlines()
    assert lines[0] == "Regression: 4 of 16 figures of 2 rows got worse; 1 missing, 2 new."
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert "synthetic:arxiv@0.002 · sage 3 x 16 · 3 epochs" in lines
    text = " ".join(drawn(worse, 1000).split())
    assert "keeps 963,263,211 bytes for backward instead of 953,725,952 (+1.00 %, allowed 0.1 %)." in text
    assert "takes 200 ms an epoch instead of 100 ms (+100.00 %, allowed 10 %" in text
    assert (
        "scores 47.00 % instead of 50.00 % test accuracy (-3.00 pts, allowed 1 point, interval -3.00 to -3.00)" in text
    )
    assert "has 2 of 3 runs ok, 3 in the baseline (oom with seed 2, Odd|[Error]:" in text
    assert "missing: blockwise (sage, synthetic:arxiv@0.002) is missing: 3 runs in the baseline and none now." in text


def test_a_pass_names_what_improved() -> None:
    verdict = check_records([example(saved_bytes=1000)], [example(saved_bytes=900)])
    assert headline(verdict) == "No regression in 8 figures of 1 row; 1 improved."
    assert "improved: fp32 (sage, synthetic:arxiv@0.002) keeps 900 bytes for backward instead of 1,000" in drawn(
        verdict, 200
    )


def test_only_missing_parts() -> None:
    base, new = [example("fp32", 0), example("fp32", 1)], [example("fp32", 0)]
    verdict = check_records(base, new)
    assert headline(verdict) == "Incomplete: 1 part of the baseline missing, nothing got worse; 1 missing."
    assert "has 1 seed of the baseline's 2: 1 is missing." in drawn(verdict, 200)
    assert headline(check_records(base, new, allow_missing=True)).startswith("No regression")


def test_what_is_unclear_says_what_to_do() -> None:
    slower = example(epoch_seconds=[9.0, 9.0, *[0.12] * 10], curve={"loss": [3.0, 1.9, 1.5]})
    text = " ".join(drawn(check_records([example()], [slower]), 200).split())
    assert "one run says nothing of how much runs differ: measure five seeds." in text
    assert "it trains differently from epoch 2 on" in text


def test_junit_has_a_case_for_every_figure_and_both_values_in_a_failure(worse: Verdict) -> None:
    root = ElementTree.fromstring(junit_xml(worse))
    assert root.tag == "testsuites"
    (suite,) = root
    cases = list(suite)
    assert (
        len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases) == int(suite.attrib["tests"])
    )
    failures = [failure for case in cases if (failure := case.find("failure")) is not None]
    assert len(failures) == int(suite.attrib["failures"]) == len(worse.failures)
    messages = {str(failure.get("message")) for failure in failures}
    assert any("963,263,211" in message and "953,725,952" in message for message in messages)
    assert any("\ufffd[31mno, 100 % *room*" in message for message in messages)
    assert {(case.get("classname"), case.get("name")) for case in cases} >= {
        ("synthetic:arxiv@0.002/sage/fp32", "saved bytes"),
        ("synthetic:arxiv@0.002/sage/exact", "epoch time"),
        ("synthetic:arxiv@0.002/sage/blockwise", "row"),
    }


def test_what_may_be_missing_is_skipped_in_junit() -> None:
    verdict = check_records([example(), example("exact")], [example()], allow_missing=True)
    suite = ElementTree.fromstring(junit_xml(verdict))[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")


def test_rows_that_differ_in_their_recipe_alone_are_cases_of_their_own() -> None:
    both = [example(), example(recipe=example()["recipe"] | {"epochs": 9})]
    verdict = check_records(both, both)
    places = {case.get("classname") for case in ElementTree.fromstring(junit_xml(verdict))[0]}
    assert places == {"synthetic:arxiv@0.002/sage/fp32/epochs 3", "synthetic:arxiv@0.002/sage/fp32/epochs 9"}


@pytest.mark.parametrize("name", ["dropout", "learning_rate", "a|$setting"])
def test_rows_of_one_heading_say_in_what_their_recipes_differ(name: str) -> None:
    recipes = [example()["recipe"] | {name: value} for value in (0.125, 0.375)]
    base = [example(recipe=recipe) for recipe in recipes]
    new = [example(recipe=recipe, saved_bytes=2000) for recipe in recipes]
    verdict = check_records(base, new)
    lines = drawn(verdict, 200).splitlines()
    for value in (0.125, 0.375):
        assert f"synthetic:arxiv@0.002 · sage 3 x 16 · 3 epochs · {name} {value}" in lines
        sentence = f"fp32 (sage, synthetic:arxiv@0.002, {name} {value}) keeps 2,000 bytes"
        assert sum(sentence in line for line in lines) == 1
        assert sum(sentence in line for line in github_annotations(verdict)) == 1


def test_annotations_are_escaped_by_githubs_rules(worse: Verdict) -> None:
    lines = github_annotations(worse)
    assert sum(line.startswith("::error ") for line in lines) == len(worse.failures)
    assert sum(line.startswith("::notice ") for line in lines) == 2
    first = next(line for line in lines if "saved bytes" in line)
    assert first == (
        "::error title=actbench%3A fp32%2C saved bytes%2C regression::fp32 (sage, synthetic:arxiv@0.002) keeps "
        "963,263,211 bytes for backward instead of 953,725,952 (+1.00 %25, allowed 0.1 %25)."
    )
    assert not any("\n" in line or "\r" in line for line in lines)


def test_the_step_summary_is_markdown_that_a_message_cannot_break(worse: Verdict) -> None:
    text = step_summary(worse)
    assert text.startswith("## actbench check\n\n**Regression: 4 of 16 figures")
    assert "Odd\\|\\[Error\\]" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}
    assert text.count("❌") == len(worse.failures)
    error = {"type": "Odd", "message": "&lt;b&gt; costs $x^2$ {0} ![a](b)", "epoch": 1}
    text = step_summary(check_records([example()], [example(status="error", metrics=None, error=error)]))
    assert r"&amp;lt;b&amp;gt; costs \$x^2\$ \{0\} \!\[a\](b)" in text

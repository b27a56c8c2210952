import re
import statistics
import string
from collections.abc import Iterator
from typing import Any

import pytest
from scipy.stats import t as student

from actbench.analysis.warnings import find_cautions
from actbench.report.page import Section, about, build_page, caution_sentence, table_notes
from actbench.report.phrases import TEXTS, Language, mebibytes_text, say, word
from tests.report.records import CARD, MEBIBYTE, alternatives, compared, measured
from tests.runs.example import ENVIRONMENT, example_record

LANGUAGES: tuple[Language, ...] = ("en", "ja")
# Words of the texts that hold a digit; everything else must come through a gap.
FIXED = ("1エポック", "1ブロック", "1要素1バイト", "1/", "1つ", "1割", "FP32", "bfloat16", "F1")


def spoken(sections: list[Section], language: Language) -> dict[str, str]:
    """Each section's text, without its subjects."""
    return {
        section.key: "\n".join(say(s, language) for group in section.groups for s in group.sentences)
        for section in sections
    }


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "records", [measured(), measured(1), measured(environment=CARD), [example_record("exact")], measured(seeds=3)[3:]]
)
def test_both_languages_have_every_section_whatever_was_measured(
    language: Language, records: list[dict[str, Any]]
) -> None:
    texts = spoken(build_page(compared(records)), language)
    assert list(texts) == ["summary", "saved", "costs", "unknown", "rollout", "meeting"]
    assert all(texts.values())
    assert len(build_page(compared(records))[4].groups) == 3


def test_every_text_has_the_same_gaps_in_both_languages() -> None:
    for key, texts in TEXTS.items():
        english, japanese = ({name for _, name, _, _ in string.Formatter().parse(text) if name} for text in texts)
        # The metric's name is left out where Japanese has no need of it, the reference where it is plain.
        assert english ^ japanese <= {"reference"}, key


def test_no_text_holds_a_figure_of_its_own() -> None:
    for key, texts in TEXTS.items():
        for text in texts:
            rest = re.sub(r"\{\w+\}", "", text)
            for known in FIXED:
                rest = rest.replace(known, "")
            assert not re.search(r"\d", rest), key


def figures_of(records: list[dict[str, Any]]) -> Iterator[str]:
    """All that may be said of the records, worked out here anew."""
    by_scheme: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_scheme.setdefault(record["scheme"]["name"], []).append(record)
    base = by_scheme["fp32"]

    def score(group: list[dict[str, Any]]) -> list[float]:
        return [100 * r["metrics"]["test"] for r in group]

    def seconds(group: list[dict[str, Any]]) -> float:
        return statistics.median(float(s) for r in group for s in r["epoch_seconds"][r["warmup_epochs"] :])

    for group in by_scheme.values():
        first = group[0]
        saved, whole = first["saved_bytes"], first["rss_peak_bytes"]
        yield from (f"{saved / MEBIBYTE:,.1f}", f"{whole / MEBIBYTE:,.1f}", f"{saved:,}")
        yield from (f"{100 * saved / base[0]['saved_bytes']:.3g}", f"{100 * whole / base[0]['rss_peak_bytes']:.3g}")
        yield f"{100 * saved / whole:.3g}"
        yield from (f"{100 * entry['saved_bytes'] / saved:.3g}" for entry in first["ledger"])
        yield f"{statistics.fmean(score(group)):.2f}"
        yield from (f"{1000 * seconds(group):,.1f}", f"{seconds(group) / seconds(base):.2f}")
        yield from (f"{seconds([one]) / seconds([other]):.2f}" for one, other in zip(group, base, strict=True))
        differences = [a - b for a, b in zip(score(group), score(base), strict=True)]
        if len(group) > 1 and group is not base:
            mean = statistics.fmean(differences)
            reach = student.ppf(0.975, len(group) - 1) * statistics.stdev(differences) / len(group) ** 0.5
            yield from (f"{abs(value):.2f}" for value in (mean, mean - reach, mean + reach))
        yield from (str(first["scheme"].get(key)).removesuffix("r") for key in ("bits", "block", "projection"))
        yield from (str(len(group)), str(first["recipe"]["epochs"]), "95")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_figure_on_the_page_is_one_of_the_records(language: Language, seeds: int) -> None:
    records = measured(seeds)
    known = set(figures_of(records))
    for key, text in spoken(build_page(compared(records)), language).items():
        rest = text.replace(records[0]["dataset"], "")
        for fixed in ("fp32", *FIXED):
            rest = rest.replace(fixed, "")
        found = re.findall(r"\d[\d,]*(?:\.\d+)?", rest)
        assert set(found) <= known, key
        if key == "saved":
            assert found


@pytest.mark.parametrize("language", LANGUAGES)
def test_activations_never_stand_without_the_whole(language: Language) -> None:
    """The share of the activations is not to be mistaken for one of the whole memory."""
    texts = spoken(build_page(compared(measured())), language)
    ratio, whole = "3.25%", "94%"
    for text in texts.values():
        for line in text.splitlines():
            if ratio in line:
                assert whole in line or (word("rollout.prototype", language)[:8] in line and "%" in line)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_said_of_what_was_not_measured(language: Language) -> None:
    cpu = compared(measured())
    everything = "\n".join(spoken(build_page(cpu), language).values())
    everything += "\n".join(say(note, language) for note in table_notes(cpu[0]))
    assert not re.search("GPU|NVML|CUDA|VRAM", everything)
    alone = spoken(build_page(compared(measured()[3:6])), language)
    nothing = word("nothing", language)
    assert alone["summary"] == alone["meeting"] == nothing
    assert alone["rollout"].split("\n") == [nothing] * 3
    untimed = spoken(build_page(compared(measured(epoch_seconds=[1.0, 1.0, 1.0]))), language)
    assert " ms" not in untimed["costs"] + untimed["meeting"]
    no_peak = spoken(build_page(compared(measured(rss_peak_bytes=None))), language)
    assert "94%" not in "".join(no_peak.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_seed_is_not_a_result(language: Language) -> None:
    texts = spoken(build_page(compared(measured(1))), language)
    assert word("meeting.single", language).format(metric=word("metric.accuracy", language)) in texts["meeting"]
    assert "95" not in texts["costs"]
    words = {"en": "too few seeds to call it a result", "ja": "結果とは言えません"}
    assert texts["costs"].count(words[language]) == 2
    assert "fp32, exact, blockwise" in texts["unknown"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_difference_within_noise_is_called_one(language: Language) -> None:
    texts = spoken(build_page(compared(measured())), language)
    words = {"en": "cannot be told from no difference", "ja": "差がないこととは区別できません"}
    assert texts["costs"].count(words[language]) == 1
    assert "blockwise" in next(line for line in texts["costs"].splitlines() if words[language] in line)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_highest_mean_is_no_winner_where_seeds_cannot_tell(language: Language) -> None:
    """EXACT leads by a mean within noise: the page names whom it cannot be told from, and no one who is far behind."""
    scores = {"fp32": (0.70, 0.71, 0.72), "exact": (0.70, 0.72, 0.713), "blockwise": (0.71, 0.70, 0.721)}
    records = measured()
    for record in records:
        record["metrics"] = record["metrics"] | {"test": scores[record["scheme"]["name"]][record["seed"]]}
    (told,) = (
        sentence
        for group in build_page(compared(records))[0].groups
        for sentence in group.sentences
        if sentence.key == "summary.close"
    )
    assert told.values == {"scheme": "exact", "schemes": "blockwise"}
    assert say(told, language) in spoken(build_page(compared(records)), language)["summary"]
    for record in records:
        behind = record["scheme"]["name"] == "blockwise"
        record["metrics"] = record["metrics"] | {"test": 0.3 + 0.001 * record["seed"] if behind else 0.7}
    keys = [sentence.key for group in build_page(compared(records))[0].groups for sentence in group.sentences]
    assert "summary.score" in keys
    assert "summary.close" not in keys


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_time_is_told_with_what_its_seeds_gave(language: Language) -> None:
    """A median over all seeds can lie on the other side of 1 than one of them."""
    records = measured()
    for record in records:
        slow = record["scheme"]["name"] != "fp32" and record["seed"] == 2
        base = 1.07 if slow else 0.79 if record["scheme"]["name"] != "fp32" else 1.0
        record["epoch_seconds"] = [9.0, 9.0, *[base] * 20]
    for key in ("costs", "meeting"):
        text = spoken(build_page(compared(records)), language)[key]
        assert re.search(r"0\.79(\D|$)[^\n]*0\.79 to 1\.07|0\.79倍[^\n]*0\.79〜1\.07倍", text), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_generated_graph_is_called_so_in_every_section_that_names_it(language: Language) -> None:
    label = {"en": "generated", "ja": "生成"}[language]
    for section in build_page(compared(measured())):
        for group in section.groups:
            for sentence in (group.subject, *group.sentences):
                text = say(sentence, language)
                assert ("synthetic:" not in text) or label in text
    real = compared(measured(graph={"synthetic": False}, dataset="cora"))
    assert label not in "".join(spoken(build_page(real), language).values())


def test_a_gpu_is_spoken_of_where_there_was_one() -> None:
    reasons = {"nvml_peak_bytes": "NVML does not list this process"}
    records = [record | {"nvml_peak_bytes": None, "reasons": reasons} for record in measured(environment=CARD)]
    texts = spoken(build_page(compared(records)), "en")
    assert "reserved by the allocator" in texts["saved"]
    assert "allocated by tensors" not in texts["saved"] + texts["meeting"]
    assert "NVML does not list this process" in texts["unknown"]
    seen = [record | {"nvml_peak_bytes": 3 * 2**30} for record in measured(environment=CARD)]
    texts = spoken(build_page(compared(seen)), "en")
    for section in ("summary", "saved", "meeting"):
        assert "whole process, NVML" in texts[section]


@pytest.mark.parametrize("language", LANGUAGES)
def test_gradient_noise_and_runs_that_ended_are_told(language: Language) -> None:
    records = measured(gradient_noise=0.125)
    records.append(records[3] | {"seed": 9, "status": "oom", "metrics": None, "epoch_seconds": []})
    texts = spoken(build_page(compared(records)), language)
    assert "0.125" in texts["costs"]
    assert "oom" in texts["unknown"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_alternative_is_described_and_host_memory_is_told(language: Language) -> None:
    texts = spoken(build_page(compared(alternatives())), language)
    for name in ("bf16", "checkpoint", "offload"):
        assert word(f"scheme.{name}", language).format(scheme=name) in texts["saved"]
    assert any("offload" in line and "300.0 MiB" in line for line in texts["saved"].splitlines())
    # Its bytes lie elsewhere: it is not the scheme that keeps least.
    assert "offload" not in texts["summary"] + texts["meeting"] + texts["rollout"]
    assert "checkpoint" in texts["summary"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_ours_is_told_from_the_papers(language: Language) -> None:
    records = [
        example_record(name, seed, saved_bytes=size)
        for seed in (0, 1)
        for name, size in (("fp32", 9000), ("exact", 900), ("derived-lean:block=64", 300))
    ]
    (comparison,) = compared(records)
    lines = spoken(build_page([comparison]), language)["saved"].splitlines()
    (ours,) = (line for line in lines if {"en": "actbench's own", "ja": "actbench独自"}[language] in line)
    assert ours.startswith("derived-lean:block=64")
    assert {"en": "1.6-bit code", "ja": "1.6ビットの符号"}[language] in ours
    (note,) = (note for note in table_notes(comparison) if note.key == "note.ours")
    assert "derived-lean:block=64" in say(note, language)
    (papers,) = compared([record for record in records if "derived" not in record["scheme"]["name"]])
    assert "note.ours" not in {note.key for note in table_notes(papers)}


def test_bytes_far_below_a_mebibyte_are_still_told_apart() -> None:
    sizes = (0, 16_566, 118_000, MEBIBYTE, 12.34 * MEBIBYTE, None)
    assert [mebibytes_text(size) for size in sizes] == ["0.0", "0.016", "0.11", "1.0", "12.3", "–"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_scores_are_called_equal(language: Language) -> None:
    (comparison,) = compared(alternatives())
    texts = spoken(build_page([comparison]), language)
    words = {"en": "the same as fp32's with each of 3 seeds", "ja": "3シードのいずれでもfp32と同じ値です"}
    assert texts["costs"].count(words[language]) == 3
    assert "overlap" not in {caution.kind for caution in find_cautions(comparison)}
    assert "fp32" in texts["meeting"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_overrides_are_told_and_a_hostile_name_is_no_key(language: Language) -> None:
    records = measured()[:6]
    for record in records[3:]:
        record["scheme"] = record["scheme"] | {"name": "exact/linear2:bits=8"}
    text = spoken(build_page(compared(records)), language)["saved"]
    expected = word("scheme.calls", language).format(scheme="exact/linear2:bits=8", calls="linear2:bits=8")
    assert expected in text
    for record in records[3:]:
        record["scheme"] = {"name": "about", "bits": None}
    assert spoken(build_page(compared(records)), language)["saved"]


def test_many_schemes_make_a_short_page() -> None:
    records = measured()
    for block in (2, 4, 8, 16, 32):
        records += [r | {"scheme": r["scheme"] | {"name": f"blockwise:block={block}r"}} for r in records[3:6]]
    texts = spoken(build_page(compared(records)), "en")
    assert "Of 7 schemes" in texts["saved"]
    assert texts["costs"].count("accuracy") == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_machines_are_never_chosen_between(language: Language) -> None:
    """The other machine keeps less and is faster and better in everything; each is spoken of by itself."""
    other = [
        record
        | {
            "environment": ENVIRONMENT | {"device_name": "another processor"},
            "saved_bytes": record["saved_bytes"] // 2,
            "rss_peak_bytes": record["rss_peak_bytes"] // 2,
            "epoch_seconds": [seconds / 2 for seconds in record["epoch_seconds"]],
            "metrics": record["metrics"] | {"test": record["metrics"]["test"] + 0.2},
        }
        for record in measured()
    ]
    comparisons = compared(measured() + other, across_machines=True)
    sections = build_page(comparisons)
    for section in sections:
        if section.key != "rollout":
            assert [dict(group.subject.values)["device"] for group in section.groups] == [
                "a processor",
                "another processor",
            ]
    alone = build_page(compared(measured()))
    for section, expected in zip(sections, alone, strict=True):
        if section.key != "rollout":
            assert section.groups[0] == expected.groups[0]
    assert not re.search(r"\[[AB]\]", "".join(spoken(sections, language).values()))
    for group in sections[4].groups:
        told = [say(sentence, language) for sentence in group.sentences]
        assert all(("a processor" in text) != ("another processor" in text) for text in told)
    ended = {"status": "oom", "metrics": None, "saved_bytes": None}
    part = [record | ended if record["scheme"]["name"] == "fp32" else record for record in other]
    for group in build_page(compared(measured() + part, across_machines=True))[4].groups:
        assert all(" a processor" in say(sentence, language) for sentence in group.sentences if language == "en")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_reference_that_ran_out_of_memory_is_told_and_not_divided_by(language: Language, seeds: int) -> None:
    ended: dict[str, Any] = {
        "status": "oom",
        "metrics": None,
        "saved_bytes": None,
        "rss_peak_bytes": None,
        "epoch_seconds": [],
    }
    records = measured(seeds)
    records[:seeds] = [record | ended for record in records[:seeds]]
    (comparison,) = comparisons = compared(records)
    assert not {"unpaired", "no_reference"} & {caution.kind for caution in find_cautions(comparison)}
    texts = spoken(build_page(comparisons), language)
    finished = {"en": "where fp32 ran out of memory", "ja": "fp32ではメモリ不足で終わり"}[language]
    assert texts["summary"].count(finished) == 2
    assert "1.6 MiB" in texts["saved"]
    assert "481.9 MiB" in texts["saved"]
    mean = statistics.fmean(100 * record["metrics"]["test"] for record in records[seeds : 2 * seeds])
    assert f"{mean:.2f}%" in texts["costs"]
    assert (word("nothing", language) in texts["saved"] + texts["costs"] + texts["meeting"]) is False
    assert "–" not in "".join(texts[key] for key in ("summary", "saved", "costs", "meeting"))


def test_speed_needs_a_reference_with_epochs_too() -> None:
    records = measured()
    records[:3] = [record | {"epoch_seconds": [9.0, 9.0, 0.1]} for record in records[:3]]
    texts = spoken(build_page(compared(records)), "en")
    assert " ms" not in texts["costs"] + texts["meeting"]
    assert "fastest" not in texts["summary"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_roll_out_without_a_score_says_so(language: Language) -> None:
    sentence = word("rollout.prototype.unscored", language).format(scheme="blockwise", reference="fp32")
    assert sentence in spoken(build_page(compared(measured(1))), language)["rollout"]
    assert sentence not in spoken(build_page(compared(measured(3))), language)["rollout"]


def test_recipes_of_one_heading_are_told_apart() -> None:
    first = measured()
    other = [record | {"recipe": record["recipe"] | {"dropout": 0.125}} for record in first]
    own = [record | {"digest": digest * 32} for record in first for digest in ("ab", "cd")]
    subjects = [say(about(comparison), "en") for comparison in compared(first + other + own)]
    assert len(set(subjects)) == 4
    assert [text.split(" · ")[3] for text in subjects] == [
        "dropout 0.5",
        "dropout 0.125",
        "dropout 0.5, data abababab",
        "dropout 0.5, data cdcdcdcd",
    ]
    (alone,) = compared(first)
    assert say(about(alone), "en").count(" · ") == 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_caution_has_words(language: Language) -> None:
    other = ENVIRONMENT | {"device_name": "another", "commit": "1"}
    records = measured(1, epoch_seconds=[1.0] * 3, other_gpu_processes=1)
    records += measured(2, other | {"commit": "2"}) + measured(2, other)
    records.append(records[3] | {"status": "oom", "metrics": None, "seed": 8})
    (comparison,) = compared(records, across_machines=True)
    kinds = set()
    for caution in find_cautions(comparison):
        kinds.add(caution.kind)
        text = say(caution_sentence(caution, comparison), language)
        assert all(scheme in text for scheme in caution.schemes)
    assert {"machines", "one_seed", "unfinished", "few_epochs", "neighbours", "superseded", "commits"} <= kinds
    (comparison,) = compared(measured()[:-1])
    (caution,) = [each for each in find_cautions(comparison) if each.kind == "seeds_differ"]
    assert "blockwise" in say(caution_sentence(caution, comparison), language)

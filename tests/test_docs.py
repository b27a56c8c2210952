"""What the documents show runs: their commands parse, their Python runs in order, and their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer.main
from scipy.stats import t as student

from actbench.cli.main import app
from actbench.quant.levels import expected_variance, level_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_records_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`results/([^`]+)`", page.read_text(encoding="utf-8")):
        assert list((ROOT / "results").glob(name)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(page, "")).splitlines():
        if not line.startswith("actbench "):
            continue
        # What a shell would put in its place, or leave out.
        words = shlex.split(re.sub(r'"\$\(.*\)"', "exact", line), comments=True)[1:]
        verb = COMMANDS[words[0]]
        context = verb.make_context(words[0], words[1:], resilient_parsing=False)
        assert context.params, line


def test_every_page_is_found_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").iterdir():
        assert page.name == "README.md" or page.is_dir() or f"({page.name})" in index, page.name


def test_both_languages_of_the_page_for_a_decision_say_the_same() -> None:
    """The same figures in the same order of sections, and the same links and records."""
    english, japanese = ((ROOT / "docs" / f"decision{suffix}.md").read_text(encoding="utf-8") for suffix in ("", ".ja"))
    for pattern in (r"^\|.*\|$", r"^#+ ", r"^\d\. "):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, japanese, re.MULTILINE))
    for pattern in (
        r"\d+\.\d+",
        r"[+−]\d+\.\d\d",
        r"\d,\d{3}",
        r"`results/[^`]+`",
        r"`cpu-[^`]+`",
        r"\]\((?!decision)[^)]+\)",
    ):
        assert sorted(re.findall(pattern, english)) == sorted(re.findall(pattern, japanese)), pattern


def test_the_scores_of_the_page_for_a_decision_are_those_of_its_records() -> None:
    """Means over seeds of the difference to FP32 of the same seed, and Student's intervals, both worked out here."""
    page = (ROOT / "docs" / "decision.md").read_text(encoding="utf-8")
    header, *rows = re.findall(r"^ +\|(?: graph, SAGE|.*`cpu-[^`]+\.jsonl`).*\|$", page, re.MULTILINE)
    names = re.findall(r"`([\w-]+)`", header)
    assert names[0] == "exact"
    assert len(rows) >= 6
    for row in rows:
        _, seeds, *cells, record = (cell.strip(" `") for cell in row.strip(" |").split("|"))
        scores: dict[str, dict[int, float]] = {}
        for line in (ROOT / "results" / record).read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            scores.setdefault(run["scheme"]["name"], {})[run["seed"]] = 100 * run["metrics"]["test"]
        for name, cell in zip(names, cells, strict=True):
            if cell == "not measured":
                assert name not in scores
                continue
            paired = [score - scores["fp32"][seed] for seed, score in scores[name].items()]
            assert len(paired) == int(seeds)
            mean = statistics.mean(paired)
            half = float(student.ppf(0.975, len(paired) - 1)) * statistics.stdev(paired) / len(paired) ** 0.5
            shown = [f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") for value in (mean, mean - half, mean + half)]
            assert cell == "{} [{}, {}]".format(*shown)


def test_the_levels_of_the_method_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for length, alpha, minimised, uniform, less in rows:
        edges = level_table("clipped-normal", 2, int(length))
        least, usual = (expected_variance(each, int(length)) for each in (edges, (0.0, 1.0, 2.0, 3.0)))
        assert (alpha, minimised, uniform) == (f"{edges[1]:.4f}", f"{least:.5f}", f"{usual:.5f}")
        assert less == f"{100 * (1 - least / usual):.2f}"


def test_the_loop_of_the_readme_trains() -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "x": torch.randn(60, 8),
        "y": torch.randint(3, (60,)),
        "train": torch.arange(40),
        "classes": 3,
        "adj_t": torch.eye(60).to_sparse_csr(),
    }
    before = block.replace("range(100)", "range(1)").replace("    optimizer.step()\n", "")
    exec(before, names)
    first = F.cross_entropy(names["out"][:40], names["y"][:40])
    exec(block, names)
    assert F.cross_entropy(names["out"][:40], names["y"][:40]) < first


def test_the_python_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "guide.md", "python"):
        exec(block, names)
    kept = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in capsys.readouterr().out.splitlines()}
    assert kept["derived"] < kept["exact"] < kept["int4"] < kept["bf16"] < kept["fp32"]
    assert os.listdir(tmp_path) == ["mine.npz"]


EXTENDED = """
from dataclasses import replace
from pathlib import Path

import torch

from actbench.analysis.estimate import Workload, forecast
from actbench.compress import Ledger, compress
from actbench.graphs import Entry, find
from actbench.graphs.raw import SOURCES
from actbench.models import Architecture, Network, adjacency_of
from actbench.scheme import Scheme
from actbench.trace import Subject
from actbench.training import recipe_for

assert Scheme.parse("exact-fine") == replace(Scheme.parse("exact:bits=4"), name="exact-fine")
assert recipe_for("cs", "tag").architecture.hidden == 64
assert find("cs").nodes == 18_333
assert SOURCES["cs"].files(Path("data")) == [Path("data/CS/raw/ms_academic_cs.npz")]
for batch_norm in (True, False):
    architecture = Architecture("tag", 3, 21, 0.5, batch_norm)
    network, here = Network(architecture, 13, 5), torch.arange(101)
    x, adjacency = torch.randn(101, 13), adjacency_of("tag", torch.stack((here, (here + 1) % 101)), 101)
    recipe = replace(recipe_for("cs", "tag"), architecture=architecture)
    workload = Workload(Entry("ring", 101, 101, 13, 5), Subject(recipe, "single-label"), "cpu")
    schemes = ("fp32", "exact-fine", "derived", "bf16")
    found = forecast(workload, list(map(Scheme.parse, schemes)), None)
    assert not any("self-loop" in note for note in found["left_out"])
    for scheme, row in zip(schemes, found["rows"], strict=True):
        with compress(scheme, seed=0), Ledger([x, adjacency, *network.parameters(), *network.buffers()]) as ledger:
            out = network(x, adjacency)
        assert out.requires_grad
        assert ledger.total_bytes == row["saved_bytes"], (scheme, ledger.total_bytes, row)
for scheme in ("exact-fine", "derived"):
    x = torch.randn(40, 16, requires_grad=True)
    (exact,) = torch.autograd.grad(torch.nn.functional.hardtanh(x).square().sum(), x)
    with compress(scheme, seed=0), Ledger() as ledger:
        out = torch.nn.functional.hardtanh(x, -1.0, 1.0)
    assert ledger.total_bytes == 40 * 16 // 8
    assert torch.equal(torch.autograd.grad(out, x, 2 * out.detach())[0], exact)
"""


def test_the_examples_of_extending_apply() -> None:
    diffs = blocks(ROOT / "docs" / "extending.md", "diff")
    assert len(diffs) == 4
    for diff in diffs:
        subprocess.run(["git", "apply", "--check", "-"], cwd=ROOT, input=diff, text=True, check=True)


@pytest.mark.slow
def test_the_examples_of_extending_do_what_they_promise(tmp_path: Path) -> None:
    # Compiled loops come along, so that they need not be compiled again.
    for folder in ("actbench", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for diff in blocks(ROOT / "docs" / "extending.md", "diff"):
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", EXTENDED], cwd=tmp_path, env=environment, check=True)

import json
import sys
from typing import Any

import pytest

from actbench.cli.main import main
from actbench.cli.sizes import read_size
from actbench.errors import UsageError

GIVEN = ["--nodes", "1000", "--edges", "5000", "--features", "20", "--hidden", "32", "--layers", "2"]


@pytest.fixture
def actbench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the verb in this process: exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["actbench", "estimate", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capfd.readouterr()

    return run


def test_json(actbench: Any) -> None:
    code, out, err = actbench(*GIVEN, "--budget", "10MB", "--device", "cpu", "--format", "json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["estimated"] is True
    assert found["graph"] | {"nodes": 1000, "edges": 5000, "features": 20, "classes": 10} == found["graph"]
    assert (found["network"]["hidden"], found["network"]["layers"], found["budget_bytes"]) == (32, 2, 10**7)
    assert [row["scheme"] for row in found["rows"]] == ["fp32", "exact", "blockwise", "blockwise-vm", "derived"]
    kinds = ("graph", "parameter", "optimizer", "cublas", "saved", "transient")
    for row in found["rows"]:
        assert sum(row[f"{kind}_bytes"] for kind in kinds) == row["peak_bytes"]
        assert row["saved_share"] == pytest.approx(row["saved_bytes"] / row["peak_bytes"])
        assert row["fits"] is True
        assert row["largest_hidden"] >= 32
        assert row["largest_nodes"] >= 1000
        assert row["largest_edges"] == 5 * row["largest_nodes"]
    # Linear inputs at layer 1: neighbours; at layer 2: neighbours and own, with norm's input, ReLU and mask.
    assert found["rows"][0]["saved_bytes"] == 4 * 1000 * (20 + 32 * 5) + 2 * 4 * 32


def test_table(actbench: Any) -> None:
    code, out, _ = actbench("--dataset", "synthetic:arxiv@0.1", "--scheme", "exact", "--budget", "800MiB")
    assert code == 0
    assert out.startswith("Estimated, not measured · synthetic:arxiv@0.1 (generated graph): 16,934 nodes")
    assert "are no activations." in out
    assert "fits" in out
    assert "fits" not in actbench("--dataset", "cora")[1]


def test_the_papers_edges_are_those_of_the_undirected_graph(actbench: Any) -> None:
    named, twin = (
        json.loads(actbench("--dataset", name, "--format", "json")[1]) for name in ("ogbn-arxiv", "synthetic:arxiv")
    )
    assert named["graph"]["edges"] == 2_315_598
    assert named["rows"] == twin["rows"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--nodes, --edges, --features missing"),
        (["--nodes", "5", "--features", "3"], "--edges missing"),
        (["--nodes", "0", *GIVEN[2:]], "--nodes"),
        (["--nodes", "-5", *GIVEN[2:]], "--nodes"),
        (["--nodes", "1e9", *GIVEN[2:]], "--nodes"),
        (["--nodes", "9" * 5000, *GIVEN[2:]], "--nodes"),
        ([*GIVEN, "--budget", "0.5"], "not between"),
        ([*GIVEN, "--budget", "twelve"], "--budget twelve is not an amount of memory: write 12GB"),
        ([*GIVEN, "--scheme", "fp16"], "unknown scheme 'fp16'"),
        ([*GIVEN, "--device", "cpu", "--hopper"], "--hopper"),
        ([*GIVEN, "--device", "cpu", "--scheme", "offload"], "scheme 'offload' needs a GPU"),
        (["--dataset", "cora", "--nodes", "5", "--multi-label"], "leave out --nodes, --multi-label"),
        (["--dataset", "coral"], "did you mean cora"),
        (["--dataset", "absent.npz"], "There is no file absent.npz"),
    ],
)
def test_mistakes_are_one_sentence(actbench: Any, arguments: list[str], said: str) -> None:
    code, out, err = actbench(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GB", 12 * 10**9),
        ("12 GiB", 12 * 2**30),
        ("800MiB", 800 * 2**20),
        ("0.1GB", 10**8),
        ("1.5e9", 1_500_000_000),
        ("7", 7),
        ("7B", 7),
        ("3.9B", 3),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert read_size("--budget", text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "12 Gb", "12gb", "12G", "-1GB", "+1GB", "0GB", "1e99GB", "1e400", "nan", "inf", "1_000", "1,5GB", "٣GB",
     "12GB\n", "9" * 10_000, "1e9999999999", "0.5B", "2000000TiB"],
)  # fmt: skip
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        read_size("--budget", text)

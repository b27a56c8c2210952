"""The command line as a user meets it: real processes, real files."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actbench.cli.main import main

ACTBENCH = [sys.executable, "-m", "actbench"]
SMALL = ["--dataset", "synthetic:arxiv@0.002", "--epochs", "3", "--device", "cpu"]


def actbench(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ACTBENCH, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def actbench_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what starts no run: a second less for each of many wrong inputs."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["actbench", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capfd.readouterr()
    code = caught.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, captured.out, captured.err)


def own_data(path: Path, **changes: Any) -> Path:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x": generator.normal(size=(60, 5)).astype(np.float32),
        "edge_index": generator.integers(60, size=(2, 200)),
        "y": generator.integers(3, size=60),
    }
    np.savez(path, **arrays | changes)
    return path


def test_run_prints_data_on_stdout_and_progress_on_stderr(tmp_path: Path) -> None:
    done = actbench(tmp_path, "run", *SMALL, "--scheme", "fp32", "--scheme", "exact", "--format", "json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    fp32, exact = content["tables"][0]["rows"]
    assert exact["saved_bytes"] < fp32["saved_bytes"] / 20
    assert [record["status"] for record in content["records"]] == ["ok", "ok"]
    assert "[2/2] exact seed 0: test accuracy" in done.stderr
    lines = (tmp_path / "actbench.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == content["records"]

    again = actbench(tmp_path, "run", *SMALL, "--scheme", "fp32", "--scheme", "exact", "--ledger")
    assert again.returncode == 0
    assert again.stderr.count("not again (--fresh measures again)") == 2
    assert "all of forward, measured" in again.stdout
    assert len((tmp_path / "actbench.jsonl").read_text().splitlines()) == 2

    quiet = actbench(tmp_path, "run", *SMALL, "--scheme", "fp32", "--quiet", "--fresh")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert len((tmp_path / "actbench.jsonl").read_text().splitlines()) == 3


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["run", "--dataset", "synthetic:arxiv@0.002", "--device", "cpu", "--scheme", "fp32"]
    process = subprocess.Popen(
        [*ACTBENCH, *arguments, "--epochs", "100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell without job control ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child = wait_for_child(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 of 1 results are in actbench.jsonl, and the same command goes on" in stderr
    # Interrupted while it starts its child, the parent can only close the child's input, which ends it a moment later.
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_child_does_not_stop_the_grid(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*ACTBENCH, "run", *SMALL, "--epochs", "100000", "--scheme", "fp32"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = wait_for_child(process.pid)
    os.kill(child, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGKILL" in stderr
    assert "1 killed" in stdout
    (record,) = map(json.loads, (tmp_path / "actbench.jsonl").read_text().splitlines())
    assert record["status"] == "killed"


def wait_for_child(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in children.read_text().split():
            # Other children, such as git's, come and go.
            with contextlib.suppress(OSError):
                if "actbench.runs.worker" in Path(f"/proc/{child}/cmdline").read_text():
                    return int(child)
    raise AssertionError("no child came")


WRONG = [
    (["--dataset", "corra"], "did you mean cora"),
    (["--dataset", "synthetic:arxiv@2"], "above 0 and at most 1"),
    (["--dataset", "nowhere.npz"], "nowhere.npz"),
    (["--scheme", "exat"], "did you mean 'exact'"),
    (["--scheme", "blockwise:bits=3"], "bits is one of 1, 2, 4, 8"),
    (["--scheme", "blockwise:block=-64"], "block=-64"),
    (["--scheme", "fp32", "--scheme", "offload"], "scheme 'offload' needs a GPU"),
    (["--scheme", "bf16:bits=8"], "write 'bf16'"),
    (["--scheme", "exact/linear2:bitz=4"], "'bitz=4'"),
    (["--scheme", "exact/linear9:bits=4"], "overrides linear9, but the model calls linear 6 times"),
    (["--scheme", "exact/linear4:bits=4", "--model", "gcn"], "the model calls linear 3 times"),
    (["--seeds", "0"], "--seeds"),
    (["--epochs", "-1"], "--epochs"),
    (["--dropout", "1.5"], "--dropout"),
    (["--model", "gin"], "--model"),
    (["--output", "."], "is a folder"),
    (["--output", "none/runs.jsonl"], "there is no folder"),
    (["--colour", "red"], "--colour"),
    (["--dataset", ""], "There is no data set ''"),
    (["--learning-rate", "inf"], "not a finite number"),
    (["--weight-decay", "nan"], "--weight-decay"),
    (["--output", "/dev/null"], "no regular file"),
    (["--output", "x" * 300], "cannot be written"),
    (["--dataset", "x" * 300 + ".npz"], "cannot be read"),
    (["--dataset", "~no-such-user/x.npz"], "There is no file ~no-such-user/x.npz"),
    (["--output", "~no-such-user/x.jsonl"], "there is no folder"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_wrong_input_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    refused(actbench_here(monkeypatch, capfd, tmp_path, "run", "--device", "cpu", *arguments), says)
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_temporary_files_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Undone before pytest itself asks for one.
    with monkeypatch.context() as without:
        without.setattr(tempfile, "tempdir", None)
        without.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
        done = actbench_here(monkeypatch, capfd, tmp_path, "run", *SMALL, "--quiet")
    refused(done, "let TMPDIR name one")
    assert list(tmp_path.iterdir()) == []


def refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_cuda_without_a_gpu_in_a_process_of_its_own(tmp_path: Path) -> None:
    refused(actbench(tmp_path, "run", "--device", "cuda", CUDA_VISIBLE_DEVICES=""), "sees no GPU")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": np.full((60, 5), np.nan, np.float32)}, "nan"),
        ({"edge_index": np.array([[0, 1], [1, 60]])}, "60"),
        ({"y": np.zeros(59, np.int64)}, "59"),
    ],
)
def test_data_of_ones_own_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    path = own_data(tmp_path / "own.npz", **changes)
    refused(actbench_here(monkeypatch, capfd, tmp_path, "run", "--device", "cpu", "--dataset", "own.npz"), says)
    assert list(tmp_path.iterdir()) == [path]


def test_data_of_ones_own(tmp_path: Path) -> None:
    own_data(tmp_path / "own.npz")
    arguments = ("run", "--dataset", "own.npz", "--epochs", "2", "--scheme", "exact", "--device", "cpu", "--quiet")
    done = actbench(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "own.npz · sage" in done.stdout
    assert "generated" not in done.stdout
    own_data(tmp_path / "own.npz", y=np.arange(60) % 3)
    actbench(tmp_path, *arguments)
    # Another content is another measurement.
    assert len((tmp_path / "actbench.jsonl").read_text().splitlines()) == 2


def test_a_truncated_raw_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, data_dir: Path
) -> None:
    raw = tmp_path / "data" / "Cora" / "raw"
    shutil.copytree(data_dir / "Cora" / "raw", raw)
    damaged = raw / "ind.cora.allx"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    before = sorted(tmp_path.rglob("*"))
    arguments = ("run", "--device", "cpu", "--dataset", "cora", "--data-dir", "data")
    refused(actbench_here(monkeypatch, capfd, tmp_path, *arguments), "Cora")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("folder", "name", "epochs"),
    [
        ("Cora", "cora", 10),
        pytest.param("PubMed", "pubmed", 10, marks=pytest.mark.slow),
        pytest.param("Computers", "computers", 5, marks=pytest.mark.slow),
        pytest.param("Physics", "physics", 2, marks=pytest.mark.slow),
    ],
)
def test_real_graphs_train_from_raw_files_with_no_network(
    tmp_path: Path, data_dir: Path, folder: str, name: str, epochs: int
) -> None:
    shutil.copytree(data_dir / folder / "raw", tmp_path / "data" / folder / "raw")
    done = actbench(
        tmp_path, "run", "--dataset", name, "--model", "gcn", "--data-dir", "data", "--epochs", str(epochs),
        "--scheme", "exact", "--device", "cpu", "--format", "json", http_proxy="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["records"]
    assert record["saved_bytes"] == record["predicted_saved_bytes"]
    assert not record["graph"]["synthetic"]
    losses = record["curve"]["loss"]
    assert losses[-1] < losses[0]


def test_an_absent_data_set_without_a_network(tmp_path: Path) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for verb in (["run", "--device", "cpu", "--dataset", "cora"], ["pull", "cora"]):
        done = actbench(tmp_path, *verb, "--data-dir", "data", **proxies)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert "cora" in done.stderr.splitlines()[-1]


def test_datasets_lists_them_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, data_dir: Path
) -> None:
    done = actbench_here(monkeypatch, capfd, tmp_path, "datasets", "--data-dir", str(data_dir), "--format", "json")
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert listed["cora"]["present"]
    assert not listed["ogbn-products"]["present"]
    assert listed["synthetic:arxiv"]["present"]
    table = actbench_here(monkeypatch, capfd, tmp_path, "datasets")
    assert table.returncode == 0
    assert "ogbn-arxiv" in table.stdout


def test_kernels_prints_a_table_and_keeps_the_record(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = ["kernels", "--shape", "40x24", "--repeats", "2", "--no-compile", "--device", "cpu"]
    done = actbench_here(monkeypatch, capfd, tmp_path, *small, "--output", "kernels.json")
    assert done.returncode == 0
    assert "project + quantize" in done.stdout
    record = json.loads((tmp_path / "kernels.json").read_text())
    done = actbench_here(monkeypatch, capfd, tmp_path, *small, "--format", "json")
    assert [row["operation"] for row in json.loads(done.stdout)["rows"]] == [r["operation"] for r in record["rows"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shape", "3x"], "--shape 3x is not ROWSxWIDTH"),
        (["--shape", "axb"], "--shape axb"),
        (["--shape", "0x5"], "--shape 0x5"),
        (["--shape", "2147483648x2147483648"], "more than 8589934592 elements"),
        (["--repeats", "0"], "--repeats"),
        (["--output", "none/kernels.json"], "there is no folder"),
    ],
)
def test_wrong_input_to_kernels_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = actbench_here(monkeypatch, capfd, tmp_path, "kernels", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_kernels_replaces_no_other_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "runs.jsonl"
    other.write_text('{"precious": 1}\n')
    done = actbench_here(monkeypatch, capfd, tmp_path, "kernels", "--shape", "4x4", "--output", "runs.jsonl")
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert other.read_text() == '{"precious": 1}\n'


@pytest.mark.parametrize(
    "arguments", [*([verb, "--help"] for verb in ("run", "datasets", "pull", "kernels")), ["--help"], ["--version"]]
)
def test_help(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    done = actbench_here(monkeypatch, capfd, tmp_path, *arguments)
    assert done.returncode == 0
    assert "actbench" in done.stdout
    assert done.stderr == ""


def test_an_unknown_verb(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(actbench_here(monkeypatch, capfd, tmp_path, "rum"), "rum")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--heads", "2"], "--heads means nothing without --model gat"),
        (["--model", "gat", "--no-residual"], "--residual means nothing without --model gcnii"),
        (["--sampler", "cluster", "--roots", "5"], "--roots means nothing without --sampler saint"),
        (["--model", "gat", "--dataset", "cora", "--mask-rate", "0.5"], "without --labels-as-input"),
        (["--parts", "0", "--sampler", "cluster"], "greater than or equal to 1"),
        (
            ["--parts", "4", "--parts-per-batch", "9", "--sampler", "cluster"],
            "--parts-per-batch 9 is more than there are, 4",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: list[str], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = actbench_here(monkeypatch, capfd, tmp_path, "run", *options)
    assert done.returncode == 2
    assert remedy in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("surplus", [("--shape", "8x8"), ("--output", "kernels.json"), ("--device", "cpu")])
def test_what_registers_would_pass_over_is_refused(
    surplus: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who asks for a file must not be left without one in silence."""
    refused(actbench_here(monkeypatch, capfd, tmp_path, "kernels", "--registers", *surplus), f"leave out {surplus[0]}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--seeds", "0", "'0' should be greater than or equal to 1."),
        ("--seeds", "99999999999", "'99999999999' should be less than or equal to 10000."),
        ("--epochs", "ten", "'ten' should be a valid integer, unable to parse string as an integer."),
        ("--dropout", "nan", "'nan' should be less than or equal to 0.99."),
        ("--layers", "100000", "'100000' should be less than or equal to 256."),
        ("--hidden", "99999999999", "'99999999999' should be less than or equal to 16777216."),
        ("--model", "", "'' is not one of 'sage', 'gcn', 'gcnii', 'gat'."),
    ],
)
def test_a_value_that_is_not_possible_is_named(
    option: str,
    value: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = actbench_here(monkeypatch, capfd, tmp_path, "run", option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert " ".join(done.stderr.split()) == f"actbench: Invalid value for '{option}': {sentence}"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sampled_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = ["run", *SMALL, "--model", "gat", "--sampler", "cluster", "--parts", "9", "--format", "json"]
    command += ["--scheme", "exact", "--hidden", "8"]
    first, second = (actbench(tmp_path, *command) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    record, again = (json.loads(done.stdout)["records"][0] for done in (first, second))
    assert record == again
    assert record["saved_bytes"] == record["predicted_saved_bytes"]
    assert record["recipe"]["parts"] == 9
    assert (tmp_path / "actbench.jsonl").read_text().count("\n") == 1
    other = actbench(tmp_path, *command, "--parts-per-batch", "2")
    assert (tmp_path / "actbench.jsonl").read_text().count("\n") == 2, other.stderr
    many = actbench(tmp_path, *command, "--parts", "400")
    refused(many, "--parts 400 cannot be made of the 339 nodes")
    assert (tmp_path / "actbench.jsonl").read_text().count("\n") == 2

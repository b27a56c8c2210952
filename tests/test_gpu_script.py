"""`.ci/gpu`, from a bare checkout with an empty site: both calls on a CPU, and what it says before it begins."""

import importlib.machinery
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1]
CARRIED = ("typer", "rich")


def own_and_needed(name: str, found: dict[str, None]) -> dict[str, None]:
    """The names of a distribution and of all that it needs here."""
    if name not in found:
        found[name] = None
        for text in distribution(name).requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                own_and_needed(wanted.name, found)
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files without a repository, as they come to a machine that has nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "checkout"
    for entry in (".ci", "actbench", "kernels", "tests", "pyproject.toml", "README.md", "LICENSE"):
        source = PROJECT / entry
        if source.is_dir():
            shutil.copytree(source, folder / entry, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def wheels(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's wheel, and those of some packages, made of what is installed here: a test has no network."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*pip, "-w", str(folder), str(checkout)], check=True, capture_output=True)
    for name in dict.fromkeys(each for carried in CARRIED for each in own_and_needed(carried, {})):
        package = distribution(name)
        with zipfile.ZipFile(folder / f"{package.name}-{package.version}-py3-none-any.whl", "w") as wheel:
            for file in package.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    wheel.write(str(package.locate_file(file)), str(file))
    (folder / "commit").write_text("0123456789ab\n")
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has torch and the like, and neither this package nor what is carried."""
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    absent = ("actbench", "_actbench", "__editable__", *CARRIED)
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.startswith(absent):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python3"


def call(machine: Path, checkout: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(machine), str(checkout / ".ci" / "gpu"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout.parent)


def test_both_calls_run_from_a_bare_checkout_and_end_in_a_table(
    machine: Path, checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    done = call(machine, checkout, "prove", wheels, tmp_path / "1", "--trial")
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "1" / "summary.txt").read_text()
    assert done.stdout.endswith(f"\n\n{table}")
    steps = ["versions", "one case", "tests", "kernels", "race check"]
    assert [line[:10].rstrip() for line in table.splitlines()] == steps
    assert "skipped in" in table
    record = json.loads((tmp_path / "1" / "cpu-kernels.json").read_text())
    assert record["complete"]
    assert len(record["rows"]) == 16
    assert record["environment"]["commit"] == "0123456789ab"
    assert json.loads((tmp_path / "1" / "doctor.json").read_text())["kind"] == "doctor"

    done = call(machine, checkout, "measure", wheels, tmp_path / "2", "--trial")
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "2" / "summary.txt").read_text()
    assert len(table.splitlines()) <= 10
    assert table.count("11 of 11 runs ended well") == 2
    for shape in ("arxiv", "flickr"):
        records = list(map(json.loads, (tmp_path / "2" / f"cpu-synthetic-{shape}.jsonl").read_text().splitlines()))
        assert {record["status"] for record in records} == {"ok"}
        assert all(record["environment"]["commit"] == "0123456789ab" for record in records)
        assert all(record["environment"]["together"] for record in records)
    for folder in ("1", "2"):
        assert len(list((tmp_path / folder).iterdir())) <= 8


def test_the_limits_of_the_steps_fit_the_calls(checkout: Path, tmp_path: Path) -> None:
    script = load(checkout)
    for steps, limit in ((script["prove"], 330), (script["measure"], 280)):
        assert script["IMPORT"] + sum(step.limit for step in steps(tmp_path, "cuda")) <= limit


@pytest.mark.parametrize(
    ("program", "outcome", "well"),
    [
        ("print('720 passed, 2 skipped, 30 deselected, 1 warning in 3.20s')", "ok", True),
        ("print('720 passed in 62.20s (0:01:02)'); print('a library says goodbye')", "ok", True),
        ("print('7 passed in 3.20s')", "no proof", False),
        ("print('720 skipped in 3.20s')", "no proof", False),
        ("print('120 passed, 600 skipped in 3.20s')", "no proof", False),
        ("import sys; print('1 failed, 720 passed in 3.20s'); sys.exit(1)", "failed 1", False),
        ("import sys; print('Device not supported'); sys.exit(1)", "skipped", True),
        ("import time; print('720 passed in 3.20s', flush=True); time.sleep(60)", "cut off", False),
        ("import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", "cut off", False),
    ],
)
def test_a_step_that_proves_nothing_or_takes_too_long_does_not_pass(
    program: str, outcome: str, well: bool, checkout: Path, tmp_path: Path
) -> None:
    script = load(checkout)
    script["run"].__globals__["GRACE"] = 1
    proof = script["PASSED"].format(r"\d{3,}")
    step = script["Step"]("name", 3, [sys.executable, "-c", program], "output.txt", proof)
    good, lines = script["run"](step, tmp_path, {})
    assert good == well
    assert f"name       {outcome} " in lines[0]


def test_hazards_are_counted(checkout: Path, tmp_path: Path) -> None:
    script = load(checkout)
    for count, outcome in ((0, "ok"), (10, "no proof")):
        told = f"print('========= RACECHECK SUMMARY: {count} hazards displayed (0 errors, {count} warnings)')"
        step = script["Step"]("race", 20, [sys.executable, "-c", told], f"{count}.txt", r"\b0 hazards displayed")
        assert f" {outcome} " in script["run"](step, tmp_path, {})[1][0]


def test_runs_that_did_not_end_well_are_no_success_nor_a_file_that_was_cut_the_end(
    checkout: Path, tmp_path: Path
) -> None:
    script = load(checkout)
    path = tmp_path / "records.jsonl"
    write = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('{}')"
    for text, said in (('{"status": "oom", "scheme": {"name": "fp32"}}', "0 of 1 runs"), ('{"status": ', "cannot be")):
        command = [sys.executable, "-c", write.format(text), "--output", str(path)]
        good, lines = script["run"](script["Step"]("arxiv", 20, command, "arxiv.txt", "1 of 1 runs"), tmp_path, {})
        assert not good
        assert said in lines[0]


def test_a_package_that_no_step_needs_fails_none(checkout: Path) -> None:
    script = load(checkout)
    environment = {"device_name": "NVIDIA H200", "versions": {"torch": "2.11.0"}, "cuda": "13.0"}
    for wrong, outcome in ((["ogb", "pymetis"], "ok"), (["ogb", "CuPy"], "failed 2"), (["CUDA"], "failed 2")):
        findings = [{"name": name, "state": "problem", "topic": "versions"} for name in wrong]
        text = json.dumps({"environment": environment, "findings": findings})
        lines, became = script["examined"](text, "failed 2")
        assert became == outcome
        assert lines == [f"NVIDIA H200, torch 2.11.0, CUDA 13.0; problems: {', '.join(wrong)}"]
    assert script["examined"]("Traceback\nKeyError: 1", "failed 1") == (["KeyError: 1"], "failed 1")


def load(checkout: Path) -> dict[str, Any]:
    """The script's own names."""
    loader = importlib.machinery.SourceFileLoader("gpu_script", str(checkout / ".ci" / "gpu"))
    spec = importlib.util.spec_from_loader("gpu_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module
    loader.exec_module(module)
    return vars(module)


def test_what_is_missing_is_named_before_anything_begins(
    machine: Path, checkout: Path, wheels: Path, tmp_path: Path
) -> None:
    few = shutil.copytree(wheels, tmp_path / "few")
    for wheel in few.glob("typer-*.whl"):
        wheel.unlink()
    done = call(machine, checkout, "prove", few, tmp_path / "out", "--trial")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gpu: not installed here, nor among the wheels: typer; .ci/gpu carry WHEELS NAME fetches one.\n"
    )
    assert "cupy-cuda13x" in call(machine, checkout, "measure", few, tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


def test_a_wheel_of_other_sources_is_refused(machine: Path, checkout: Path, wheels: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkout, tmp_path / "checkout", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "kernels" / "mask.cu").open("a") as kernel:
        kernel.write("\n")
    done = call(machine, other, "prove", wheels, tmp_path / "out", "--trial")
    assert done.returncode == 2
    assert "actbench-" in done.stderr
    assert done.stderr.endswith(f"is not of this checkout: .ci/gpu carry {wheels} makes it anew.\n")
    done = call(machine, other, "prove", wheels, wheels, "--trial")
    assert done.stderr == f"gpu: {wheels} holds files already: name an empty folder, or a new one.\n"
    done = call(machine, other, "prove", tmp_path / "nothing", tmp_path / "out", "--trial")
    assert done.returncode == 2
    assert "has 0 wheels of actbench" in done.stderr


def test_what_is_there_and_does_not_run_is_told_before_anything_begins(
    machine: Path, checkout: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = tmp_path / "modules"
    cupy.mkdir()
    (cupy / "cupy.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(cupy))
    done = call(machine, checkout, "prove", wheels, tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gpu: torch ")
    assert done.stderr.endswith(" sees no GPU here.\n")
    old = shutil.copytree(wheels, tmp_path / "old")
    with zipfile.ZipFile(old / "numba-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("numba/__init__.py", "raise ImportError('Numba needs NumPy 2.3 or less')")
    done = call(machine, checkout, "prove", old, tmp_path / "out", "--trial")
    assert done.returncode == 2
    assert done.stderr == "gpu: actbench cannot be imported here: ImportError: Numba needs NumPy 2.3 or less\n"
    assert not (tmp_path / "out").exists()

"""Kills, full disks, two commands on one file: nothing finished is lost or doubled, and the next command goes on."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actbench.errors import OutputError
from actbench.records import Record, RecordFile, identity, store
from actbench.runs import execute as execute_module
from actbench.runs import plan, run_grid
from actbench.runs.job import description
from actbench.runs.measure import measure
from actbench.scheme import Scheme
from tests.runs import stand_in
from tests.runs.example import ENVIRONMENT, example_job, example_record
from tests.runs.test_runs import Heard

JOBS = plan(example_job(), [Scheme.parse(text) for text in ("fp32", "exact", "blockwise", "derived")], 5)
Fork = Callable[[Callable[[], None]], int]


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Does its argument in a process of its own and gives its number: a command without the seconds of its start."""
    begun: list[int] = []

    def begin(work: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        begun.append(child)
        return child

    yield begin
    for child in begun:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], None]:
    """Gives every job of `JOBS` a worker that ends well after five times the seconds that it is told."""
    records = tmp_path / "records.json"
    records.write_text(
        json.dumps({f"{job.scheme} {job.seed}": example_record(str(job.scheme), job.seed) for job in JOBS})
    )

    def set_seconds(seconds: float) -> None:
        worker = [sys.executable, "-S", stand_in.__file__, str(records), str(seconds)]
        monkeypatch.setattr(execute_module, "_WORKER", worker)

    # Numba's threads do not survive a fork, and here nothing is compressed.
    monkeypatch.setattr(execute_module, "compile_loops", lambda: None)
    return set_seconds


def run_all(file: RecordFile, fresh: bool = False) -> list[Record]:
    return list(run_grid(JOBS, file, ENVIRONMENT, fresh, Heard()))


def ended(process: int) -> int | None:
    """The exit status of `process` (negative for a signal), None while it lives."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def final(records: list[Record]) -> Counter[tuple[str, int]]:
    return Counter((r["scheme"]["name"], r["seed"]) for r in records if r["status"] == "ok")


EACH_ONCE = Counter((str(job.scheme), job.seed) for job in JOBS)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_at_any_moment_lose_and_double_nothing(
    fork: Fork, stand_ins: Callable[[float], None], tmp_path: Path
) -> None:
    """Thirty of the command and thirty of the run that it waits for, or more."""
    chance = random.Random(2026)
    stand_ins(0.002)
    kills: Counter[str] = Counter()
    while min(kills["run"], kills["command"]) < 30:
        file = RecordFile(tmp_path / f"{kills.total()}.jsonl")
        killed_runs, status, before = 0, None, list[Record]()
        # A run that was killed is measured again by the next command.
        while status != 0 or final(before) != EACH_ONCE:
            command = fork(lambda file=file: None if len(run_all(file)) == len(JOBS) else os.abort())  # type: ignore[misc]
            while (status := ended(command)) is None:
                time.sleep(chance.uniform(0, 0.2))
                run = children(command)
                if run and chance.random() < 0.5:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(run[0], signal.SIGKILL)
                        kills["run"] += 1
                        killed_runs += 1
                else:
                    os.kill(command, signal.SIGKILL)
                    kills["command"] += 1
            assert status in (0, -signal.SIGKILL)
            now = file.read()
            assert now[: len(before)] == before
            before = now
        states = Counter(record["status"] for record in before)
        assert states.keys() <= {"ok", "killed"}
        assert states["killed"] <= killed_runs
        assert len(file.path.read_bytes().splitlines()) == len(before)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("written", [0, 1, 400])
def test_a_kill_in_the_middle_of_an_append_loses_that_record_alone(
    fork: Fork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    file = RecordFile(tmp_path / "runs.jsonl")
    first, second, third = (example_record(seed=seed) for seed in range(3))
    file.append(first)
    write = os.pwrite

    def die(descriptor: int, line: bytes, place: int) -> int:
        write(descriptor, line[:written], place)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", die)
        child = fork(lambda: file.append(second))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert file.read() == [first]
    file.append(third)
    assert file.read() == [first, third]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("commands", [2, 3])
def test_commands_at_once_on_one_file_measure_every_job_once(
    fork: Fork, stand_ins: Callable[[float], None], tmp_path: Path, commands: int
) -> None:
    """Each of them gets all the records all the same."""
    stand_ins(0.005)
    file = RecordFile(tmp_path / "runs.jsonl")
    running = [fork(lambda: None if final(run_all(file)) == EACH_ONCE else os.abort()) for _ in range(commands)]
    assert [os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) for command in running] == [0] * commands
    assert final(file.read()) == EACH_ONCE
    assert len(file.read()) == len(JOBS)


def test_what_another_process_measures_comes_last_and_is_waited_for(
    stand_ins: Callable[[float], None], tmp_path: Path
) -> None:
    stand_ins(0.0)
    file = RecordFile(tmp_path / "runs.jsonl")
    heard = Heard()
    held = file.claim(identity(description(JOBS[0], ENVIRONMENT)), wait=False)
    assert held.__enter__()
    grid = run_grid(JOBS[:2], file, ENVIRONMENT, False, heard)
    assert next(grid)["scheme"]["name"] == "exact"
    held.__exit__(None, None, None)
    assert next(grid)["scheme"]["name"] == "fp32"
    assert [event for event in heard.events if "advanced" not in event] == [
        "started exact", "ended exact", "waiting fp32", "started fp32", "ended fp32",
    ]  # fmt: skip


def test_a_claim_without_a_record_leaves_no_file_unless_others_have_claims_in_it(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "runs.jsonl")
    with file.claim("one", wait=False) as ours:
        assert ours
        with file.claim("one", wait=False) as again:
            assert not again
        with file.claim("another", wait=False) as other:
            assert other
        assert file.path.exists()
    assert not file.path.exists()
    with file.claim("one", wait=False) as ours:
        file.append(example_record())
        assert ours
    assert file.read() == [example_record()]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_is_full_keeps_its_records_and_the_new_one_is_elsewhere(
    fork: Fork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of file sizes, at which the kernel writes a part of the line and refuses the rest."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    file = RecordFile(tmp_path / "runs.jsonl")
    first, second = example_record(seed=0), example_record(seed=1)
    file.append(first)
    size = file.path.stat().st_size
    said = tmp_path / "said"

    def limit(most: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def rescue(line: bytes) -> str:
        # The limit stands for one disk: where temporary files go there is room.
        limit(resource.RLIM_INFINITY)
        return rescued(line)

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        monkeypatch.setattr(store, "_rescued", rescue)
        limit(size + 100)
        with pytest.raises(OutputError) as caught:
            file.append(second)
        said.write_text(str(caught.value))

    rescued = store._rescued
    child = fork(fill)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.path.stat().st_size == size
    assert file.read() == [first]
    (kept,) = folder.iterdir()
    assert RecordFile(kept).read() == [second]
    assert f"(File too large) and is in {kept} instead: make room" in said.read_text()


def on_a_small_disk(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`command` of a shell in `folder`, which is a disk of its own of 8 MiB while it runs."""
    mount = f"mount -t tmpfs -o size=8m tmpfs {folder} && cd {folder} || exit 99; {command}"
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    return done


RUN = f"{sys.executable} -m actbench run --quiet --dataset synthetic:arxiv@0.002 --epochs 2 --device cpu --scheme fp32"


def test_a_full_disk_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    done = on_a_small_disk(f"head -c 7m /dev/zero > others; {RUN}; echo $?; ls", tmp_path)
    assert done.stdout.split() == ["2", "others"]
    assert done.stderr == (
        "actbench: --output actbench.jsonl has less than 4 MiB of room for records: make room or name a file on "
        "another disk.\n"
    )


def test_a_disk_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    done = on_a_small_disk(f"mount -o remount,ro {tmp_path}; {RUN}; echo $?; ls", tmp_path)
    assert done.stdout.split() == ["2"]
    assert done.stderr == (
        "actbench: --output actbench.jsonl cannot be written (Read-only file system): name another file.\n"
    )


@pytest.mark.slow
def test_a_disk_that_fills_meanwhile_loses_nothing_and_the_next_command_goes_on(tmp_path: Path) -> None:
    """It fills when the first run has begun, whose claim makes the file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    (tmp_path / "temporary").mkdir()
    fill = "head -c 8m /dev/zero > others 2> /dev/null"
    command = (
        f"export TMPDIR={tmp_path}/temporary; {RUN} --seeds 2 > /dev/null & "
        f"until [ -f actbench.jsonl ]; do sleep 0.1; done; {fill}; wait $!; echo $?; rm others; "
        f"cat {tmp_path}/temporary/actbench-*.jsonl >> actbench.jsonl; {RUN} --seeds 2 > /dev/null; echo $?; "
        "cat actbench.jsonl"
    )
    done = on_a_small_disk(command, folder)
    first, second, *lines = done.stdout.splitlines()
    assert (first, second) == ("2", "0"), done.stderr
    assert "No space left on device) and is in" in done.stderr
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]


def test_a_clock_that_goes_back_neither_hurts_a_measurement_nor_repeats_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards(datetime):
        """Every look at the clock is an hour before the last."""

        looks = 0

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            cls.looks += 1
            return datetime(2026, 1, 1, tzinfo=tz) - timedelta(hours=cls.looks)

    monkeypatch.setattr("actbench.runs.measure.datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: float(-Backwards.looks))
    monkeypatch.setattr("actbench.runs.grid.execute", lambda job, environment, report: measure(job, report))
    file = RecordFile(tmp_path / "runs.jsonl")
    jobs = [job for job in JOBS if not job.scheme.compresses][:2]
    environment = measure(jobs[0], lambda state: None)["environment"]
    records = list(run_grid(jobs, file, environment, False, Heard()))
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert records[0]["started"] > records[1]["started"]
    assert all(seconds > 0 for record in records for seconds in [*record["epoch_seconds"], record["wall_seconds"]])
    assert list(run_grid(jobs, file, environment, False, Heard())) == json.loads(json.dumps(records))


def test_a_run_does_not_outlive_a_command_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from tests.runs.example import *; from actbench.runs.execute import execute\n"
        "execute(example_job(epochs=100_000), ENVIRONMENT, lambda state: print(state['epoch'], flush=True))"
    )
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "1\n"
    (run,) = children(command.pid)
    command.kill()
    command.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{run}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{run}").exists()


def test_a_run_whose_command_ended_before_it_began_does_not_begin() -> None:
    done = subprocess.run(
        [*execute_module._WORKER, str(os.getppid())],
        input=json.dumps(example_job(epochs=100_000).to_json()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the command that started this run has ended\n"


@pytest.mark.slow
def test_host_memory_that_runs_out_is_a_record_of_how_far_it_came_and_the_grid_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the second epoch of the first run on its process may have a mebibyte more than it has."""
    program = (
        "import resource, actbench.runs.worker as worker\n"
        "from actbench.training import Trainer\n"
        "epoch = Trainer.epoch\n"
        "def short(self, *around):\n"
        "    if self.recipe.architecture.hidden == 64:\n"
        "        pages = int(open('/proc/self/statm').read().split()[0])\n"
        "        resource.setrlimit(resource.RLIMIT_AS, ((pages + 256) * resource.getpagesize(),) * 2)\n"
        "    return epoch(self, *around)\n"
        "Trainer.epoch = short\n"
        "worker.main()"
    )
    monkeypatch.setattr(execute_module, "_WORKER", [sys.executable, "-c", program])
    # Large tensors, which the allocator must ask the kernel for: 4 bytes x 16,934 nodes x 64.
    jobs = [
        replace(job, dataset="synthetic:arxiv@0.1", recipe=job.recipe.overridden(hidden=hidden, epochs=3))
        for job, hidden in ((JOBS[0], 64), (JOBS[0], 8))
    ]
    short, enough = run_grid(jobs, RecordFile(tmp_path / "runs.jsonl"), ENVIRONMENT, False, Heard())
    assert (short["status"], enough["status"]) == ("oom", "ok")
    assert short["error"]["epoch"] == 2
    assert short["saved_bytes"] == short["predicted_saved_bytes"] > 0
    assert len(short["epoch_seconds"]) == len(short["curve"]["loss"]) == 1


def test_what_a_child_says_before_anybody_listens_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have died before its parent has given it a job."""
    monkeypatch.setattr(execute_module, "_WORKER", [sys.executable, "-S", "-c", "raise SystemExit('std::bad_alloc')"])
    with contextlib.closing(execute_module.Child(JOBS[0])) as child:
        while not child.has_ended:
            pass
        record = child.measure(JOBS[0], ENVIRONMENT, lambda state: None)
    assert (record["status"], record["error"]["traceback"].strip()) == ("oom", "std::bad_alloc")


@pytest.mark.parametrize(
    ("program", "kernel_kills", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", 0, "killed"),
        ("import os; os.kill(os.getpid(), 9)", 1, "oom"),
        ("import os; os.kill(os.getpid(), 11)", 1, "killed"),
        ("import os, sys; os.write(2, b'terminate called after throwing std::bad_alloc'); os.abort()", 0, "oom"),
        ("raise SystemExit('libgomp: Thread creation failed: Resource temporarily unavailable')", 0, "oom"),
        ("raise SystemExit('no such library')", 1, "error"),
    ],
)
def test_a_death_for_want_of_memory_is_told_from_others(
    monkeypatch: pytest.MonkeyPatch, program: str, kernel_kills: int, status: str
) -> None:
    counted = iter((5, 5 + kernel_kills))
    monkeypatch.setattr(execute_module, "_killed_for_memory", lambda: next(counted))
    monkeypatch.setattr(execute_module, "_WORKER", [sys.executable, "-S", "-c", program])
    assert execute_module.execute(JOBS[0], ENVIRONMENT, lambda state: None)["status"] == status

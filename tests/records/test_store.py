import json
import multiprocessing
import tracemalloc
from pathlib import Path

import pytest

from actbench.errors import OutputError
from actbench.records import RecordFile
from tests.runs.example import example_record


@pytest.fixture
def file(tmp_path: Path) -> RecordFile:
    return RecordFile(tmp_path / "runs.jsonl")


def test_what_is_appended_is_read(file: RecordFile) -> None:
    records = [example_record(seed=seed) for seed in range(3)]
    for record in records:
        file.append(record)
    assert file.read() == records


def test_no_file_is_no_records(file: RecordFile) -> None:
    assert file.read() == []
    file.check_writable()
    assert not file.path.exists()


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_a_line_that_was_cut_short_is_dropped_and_nothing_else(file: RecordFile, cut: int) -> None:
    first, second, third = (example_record(seed=seed) for seed in range(3))
    file.append(first)
    file.append(second)
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    complete = [first, second] if cut == 1 else [first]
    assert file.read() == complete
    file.append(third)
    assert file.read() == [*complete, third]


@pytest.mark.parametrize(
    "line", ["no json", "[1]", "{}", '{"schema_version":99}', '{"schema_version":1}', "[" * 100_000]
)
def test_a_line_that_is_no_record_is_named(file: RecordFile, line: str) -> None:
    file.append(example_record())
    with file.path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(OutputError, match=r"line 2 of .*runs.jsonl is not a record"):
        file.read()


def test_a_line_of_any_length_is_not_parsed(file: RecordFile) -> None:
    file.append(example_record())
    line = file.path.read_bytes().rstrip()
    with file.path.open("ab") as stream:
        stream.write(line[:-1] + b',"more":[' + b"[]," * 2**23 + b"0]}\n")
    tracemalloc.start()
    try:
        with pytest.raises(OutputError, match=r"line 2 of .* is not a record"):
            file.read()
        # The file itself, and its lines.
        assert tracemalloc.get_traced_memory()[1] < 3 * file.path.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_file_of_any_size_is_one_sentence(file: RecordFile) -> None:
    with file.path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(OutputError, match=r"runs.jsonl cannot be read: File too large; name another file"):
        file.read()


def test_numbers_that_json_lacks_are_refused_and_write_nothing(file: RecordFile) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        file.append(example_record(saved_bytes=float("nan")))
    assert not file.path.exists()


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, says in [
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "runs.jsonl", "there is no folder"),
        (tmp_path / "file" / "runs.jsonl", "there is no folder"),
        (Path("/proc/runs.jsonl"), "cannot be written"),
    ]:
        with pytest.raises(OutputError, match=says) as caught:
            RecordFile(path).check_writable()
        assert str(caught.value).endswith(".")


def _append_many(path: Path, writer: int) -> None:
    for i in range(40):
        RecordFile(path).append(example_record(seed=1000 * writer + i))


def test_writers_at_once_lose_and_double_nothing(file: RecordFile) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(file.path, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    seeds = [record["seed"] for record in file.read()]
    assert sorted(seeds) == [1000 * n + i for n in range(2) for i in range(40)]
    assert all(json.loads(line) for line in file.path.read_text().splitlines())


@pytest.mark.parametrize("content", ["my precious notes", '{"schema_version":2,"status":"ok"}', '{"other": 1'])
def test_a_file_of_another_kind_is_left_alone(file: RecordFile, content: str) -> None:
    file.path.write_text(content)
    with pytest.raises(OutputError, match="line 1"):
        file.read()
    file.append(example_record())
    assert file.path.read_text().startswith(content + "\n")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_takes_the_place_of_the_one_that_was_claimed_stays(
    replaced: bool, file: RecordFile, tmp_path: Path
) -> None:
    """Removed, or moved over by another one, while the first run is under way: nothing that was written is lost."""
    with file.claim("a measurement", wait=False) as ours:
        assert ours
        file.path.unlink()
        if replaced:
            RecordFile(tmp_path / "other.jsonl").append(example_record(seed=1))
            (tmp_path / "other.jsonl").rename(file.path)
        file.append(example_record(seed=2))
    assert [record["seed"] for record in file.read()] == ([1, 2] if replaced else [2])


def test_a_link_to_a_file_yet_to_come_outlives_a_claim(file: RecordFile, tmp_path: Path) -> None:
    file.path.symlink_to(tmp_path / "elsewhere.jsonl")
    with file.claim("a measurement", wait=False) as ours:
        assert ours
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]
    file.append(example_record())
    assert (tmp_path / "elsewhere.jsonl").is_file()


def test_a_device_is_no_place_for_records() -> None:
    with pytest.raises(OutputError, match="no regular file"):
        RecordFile(Path("/dev/null")).check_writable()


def test_a_record_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        RecordFile(tmp_path / "gone" / "runs.jsonl").append(example_record())

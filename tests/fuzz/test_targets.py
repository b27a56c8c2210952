import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_begins_with_is_read(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_a_fuzzer_found_stays_mended(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_that_were_changed_at_random(name: str) -> None:
    chance = random.Random(name)
    seeds = TARGETS[name].seeds()
    for _ in range(50):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 2, 8))):
            place = chance.randrange(len(data) + 1)
            piece = chance.choice([b"", chance.randbytes(1), chance.randbytes(4), chance.choice(TARGETS[name].words)])
            data[place : place + chance.choice((0, len(piece), 40))] = piece
        TARGETS[name].run(bytes(data))

"""`python -m tests.fuzz TARGET --seconds N`: needs the extra `fuzz` (atheris), and prints how much was tried.

An input that fails is written to `fuzz-TARGET-…` in this folder; put it into `tests/fuzz/found/TARGET`, where every run
of the tests tries it again.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["actbench", "zipfile", "pickletools", "numpy.lib._format_impl"]):
    from tests.fuzz.targets import TARGETS

_LONGEST_BYTES = 2**15
_MOST_MEBIBYTES = 2048
_SLOWEST_SECONDS = 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    return parser.parse_args()


def main() -> None:
    """Fuzz one target; ends the process, with a code other than 0 if an input failed."""
    asked = _arguments()
    target = TARGETS[asked.target]
    with tempfile.TemporaryDirectory(prefix="actbench-seeds-") as folder:
        for number, seed in enumerate(target.seeds()):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        words = Path(folder) / "words.txt"
        # The dictionary's escapes are those of C, hexadecimal ones included.
        texts = ["".join(f"\\x{byte:02x}" for byte in word) for word in target.words]
        words.write_text("".join(f'"{text}"\n' for text in texts))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for seed_file in Path(folder).glob("seed-*"):
            seed_file.rename(corpus / seed_file.name)
        options = {
            "max_total_time": asked.seconds,
            "max_len": _LONGEST_BYTES,
            "rss_limit_mb": _MOST_MEBIBYTES,
            "timeout": _SLOWEST_SECONDS,
            "artifact_prefix": f"fuzz-{asked.target}-",
            "dict": words,
            "print_final_stats": 1,
            "verbosity": 1,
        }
        atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

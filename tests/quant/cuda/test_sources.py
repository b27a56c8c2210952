import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actbench.quant import sources


def test_the_options_change_with_every_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(sources.kernel_folder(), tmp_path / "kernels")
    monkeypatch.setattr(sources, "kernel_folder", lambda: tmp_path / "kernels")
    sources.compile_options.cache_clear()
    before = sources.compile_options()
    with (tmp_path / "kernels" / "philox.cuh").open("a") as header:
        header.write("\n")
    sources.compile_options.cache_clear()
    after = sources.compile_options()
    sources.compile_options.cache_clear()
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]


def test_an_installed_package_brings_its_own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "site-packages" / "actbench" / "quant" / "sources.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(sources, "__file__", str(module))
    # The Hub's package of that name must not be taken for ours.
    (tmp_path / "site-packages" / "kernels").mkdir()
    (tmp_path / "site-packages" / "actbench" / "kernels").mkdir()
    assert sources.kernel_folder() == tmp_path / "site-packages" / "actbench" / "kernels"


@pytest.mark.parametrize(("version", "extra"), [("12.8", "cuda12"), ("13.0", "cuda13"), (None, "cuda13")])
def test_without_cupy_the_error_names_the_extra_to_install(version: str | None, extra: str) -> None:
    program = (
        "import sys, torch\n"
        "sys.modules['cupy'] = None\n"
        f"torch.version.cuda = {version!r}\n"
        "from actbench.errors import DeviceError\n"
        "try:\n"
        "    import actbench.quant.cuda\n"
        "except DeviceError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"pip install 'actbench[{extra}]'.")

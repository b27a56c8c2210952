import ctypes
import locale
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from actbench.quant.cuda import sources


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
    module = tmp_path / "site-packages" / "actbench" / "quant" / "cuda" / "sources.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(sources, "__file__", str(module))
    # The Hub's package of that name must not be taken for ours.
    (tmp_path / "site-packages" / "kernels").mkdir()
    (tmp_path / "site-packages" / "actbench" / "kernels").mkdir()
    assert sources.kernel_folder() == tmp_path / "site-packages" / "actbench" / "kernels"


def test_a_compiler_that_changes_the_threads_locale_changes_it_for_itself_alone() -> None:
    library = ctypes.CDLL(None)
    library.newlocale.restype, library.uselocale.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    before = locale.nl_langinfo(locale.CODESET)
    with sources.locale_kept():
        library.uselocale(library.newlocale(1 << locale.LC_CTYPE, b"C", None))
        assert locale.nl_langinfo(locale.CODESET) == "ANSI_X3.4-1968"
    assert locale.nl_langinfo(locale.CODESET) == before


def refusal(version: str | None, setup: str) -> str:
    """What the import of the GPU's backend raises beside a torch built for CUDA `version`, after `setup`."""
    program = (
        "import sys, torch, types\n"
        "from importlib.machinery import ModuleSpec\n"
        "from actbench.quant.cuda import sources\n"
        f"torch.version.cuda = {version!r}\n"
        f"{setup}\n"
        "from actbench.errors import DeviceError\n"
        "try:\n"
        "    import actbench.quant.cuda.backend\n"
        "except DeviceError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(("version", "extra"), [("12.8", "cuda12"), ("13.0", "cuda13"), (None, "cuda13")])
def test_without_cupy_the_error_names_the_extra_to_install(version: str | None, extra: str) -> None:
    setup = "sources.find_spec = lambda name: None\nsys.modules['cupy'] = None"
    assert refusal(version, setup).endswith(f"is not installed: pip install 'actbench[{extra}]'.")


def test_a_cupy_that_cannot_be_imported_says_why() -> None:
    broken = (
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cupy':\n"
        "            raise {}\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sources.find_spec = lambda name: ModuleSpec(name, None)"
    )
    assert "libcuda.so is not there): install it anew." in refusal(
        "13.0", broken.format("ImportError('libcuda.so is not there')")
    )
    unwritable = refusal("13.0", broken.format("PermissionError(13, 'Permission denied', '/root/.cupy')"))
    assert "[Errno 13] Permission denied: '/root/.cupy'" in unwritable
    assert unwritable.endswith("let CUPY_CACHE_DIR name a folder that can be written to.")


def test_a_cupy_without_what_a_launch_needs_is_refused_with_the_one_to_install() -> None:
    setup = "sys.modules['cupy'] = types.ModuleType('cupy')\nsources.version = lambda name: '13.6.0'"
    said = refusal("12.8", setup)
    assert said.endswith("the kernels are not made for CuPy 13.6.0: pip install 'cupy-cuda12x<15,>=14.1'.")


@pytest.mark.parametrize(("found", "fits"), [("13.6.0", False), ("14.0.1", False), ("14.1", True), ("14.2.0", True)])
def test_which_cupy_fits(found: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "version", lambda _name: found)
    assert (sources.cupy_version_problem("13.0") is None) == fits


def test_nothing_is_asked_of_a_cupy_where_this_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> list[str]:
        raise PackageNotFoundError("actbench")

    monkeypatch.setattr(sources, "requires", absent)
    assert sources.cupy_version_problem("13.0") is None

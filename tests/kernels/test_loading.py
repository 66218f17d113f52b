"""Importing the package: what it costs, which OpenMP runtime it uses, what a broken core says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import evit_kernels
from evit_kernels import _native

PACKAGE = Path(evit_kernels.__file__).parent


def _python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, on this package or on the one in the folder `path`."""
    environment = {**os.environ, "EVIT_BACKEND": ""}
    if path is not None:
        # An installation in development mode offers its own core to every package of this name.
        code = (
            "import sys\n"
            "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in f.__module__]\n"
            + code
        )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path or PACKAGE.parent,  # what lies in the current folder is imported first
        timeout=120,
    )


def _output(code: str) -> str:
    result = _python(code)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_light() -> None:
    # Nothing that torch has not brought already, apart from our own files and the standard library.
    brought = _output(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import evit_kernels, evit_kernels.nn\n"
        "assert not torch.cuda.is_initialized()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(' '.join(sorted(new - sys.stdlib_module_names)))"
    ).split()
    assert "evit_kernels" in brought
    assert set(brought) <= {"evit_kernels", "torch"}
    assert not {"triton", "evit_models", "av", "rich", "click"} & set(brought)


def test_import_does_not_load_the_core() -> None:
    # The first call that needs it does: importing costs nothing, whatever state the core is in.
    assert _output(
        "import sys, evit_kernels\n"
        "print('evit_kernels._core' in sys.modules, evit_kernels._native.core().version)"
    ).startswith("False ")


def test_one_openmp_runtime_is_mapped() -> None:
    libraries = _output(
        "import torch, evit_kernels\n"
        "from evit_kernels import _native\n"
        "evit_kernels.depthwise_conv3d(\n"
        "    torch.randn(1, 8, 3, 9, 9), torch.randn(8, 1, 3, 3, 3), backend='native')\n"
        "torch.randn(10**6).sum()\n"
        "print('\\n'.join(_native.openmp_libraries()))"
    ).splitlines()
    assert len(libraries) == 1, libraries


def test_torch_governs_our_threads() -> None:
    # Counted, not timed: a thread of a pool stays once it has been started, and is seen by the
    # system. Ours start as many as torch was told to use, and torch's own work then finds them.
    counts = _output(
        "import os, torch, evit_kernels\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "torch.set_num_threads(1)\n"
        "x = torch.randn(2, 32, 6, 40, 40).contiguous(memory_format=torch.channels_last_3d)\n"
        "weight = torch.randn(32, 1, 3, 3, 3)\n"
        "run = lambda: evit_kernels.depthwise_conv3d(x, weight, padding=1, backend='native')\n"
        "start = threads()\n"
        "run(); one = threads() - start\n"
        "torch.set_num_threads(4)\n"
        "run(); four = threads() - start\n"
        "torch.randn(10**6).sum(); shared = threads() - start\n"
        "torch.set_num_threads(6)\n"
        "run(); six = threads() - start\n"
        "print(one, four, shared, six)"
    )
    assert counts == "0 3 3 5"


def _copy_of_the_package(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("_core*", "__pycache__")
    shutil.copytree(PACKAGE, folder / "evit_kernels", ignore=ignored)
    return folder


_CALL = (
    "import torch, evit_kernels\n"
    "print(evit_kernels.__file__)\n"
    "x, w = torch.zeros(1, 8, 3, 4, 4), torch.zeros(8, 1, 3, 3, 3)\n"
    "print(tuple(evit_kernels.depthwise_conv3d(x, w{}).shape))\n"
)


def test_a_core_that_does_not_load_is_an_error_with_the_loaders_words(tmp_path: Path) -> None:
    folder = _copy_of_the_package(tmp_path)
    name = "_core" + sysconfig.get_config_var("EXT_SUFFIX")
    (folder / "evit_kernels" / name).write_bytes(b"no library at all" * 100)
    result = _python(_CALL.format(""), folder)
    assert result.stdout.startswith(str(folder))
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("ImportError: evit_kernels: the compiled core is present but does not")
    # What the dynamic loader says of such a file, and which file it was.
    assert "ELF" in error
    assert name in error
    # Asking for the reference still works, and the report tells the same story.
    result = _python(_CALL.format(", backend='reference'"), folder)
    assert result.stdout.splitlines()[-1:] == ["(1, 8, 1, 2, 2)"], result.stderr
    result = _python("import sys; from evit_kernels.__main__ import main; sys.exit(main())", folder)
    assert result.returncode == 1
    assert result.stdout.count("no: evit_kernels: the compiled core is present but does not") >= 4
    assert "Traceback" not in result.stderr


def test_a_core_that_was_never_built_leaves_the_reference(tmp_path: Path) -> None:
    folder = _copy_of_the_package(tmp_path)
    result = _python(_CALL.format(""), folder)
    assert result.stdout.splitlines() == [
        str(folder / "evit_kernels" / "__init__.py"),
        "(1, 8, 1, 2, 2)",
    ]
    result = _python(_CALL.format(", backend='native'"), folder)
    assert result.returncode == 1
    assert "backend 'native' is not available: the compiled core was not built" in result.stderr


def test_instruction_sets_are_found_and_switched(instruction_set: str) -> None:
    core = _native.core()
    assert core.instruction_set() == instruction_set
    assert core.instruction_sets()[-1] in ("x86-64", "aarch64-neon")
    assert core.instruction_set() == instruction_set, "asking must not switch"
    with pytest.raises(ValueError, match="'z80' does not run here"):
        core.set_instruction_set("z80")
    assert core.instruction_set() == instruction_set

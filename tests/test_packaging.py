"""The package as a whole: one version, what a wheel holds, and which way dependencies point."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from evit_kernels import _native, backends

ROOT = Path(__file__).resolve().parent.parent
CORE_SOURCES = sorted(
    path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")
)
PYTHON_FILES = sorted(
    path
    for folder in ("evit_kernels", "evit_models", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
# About 400 lines are one room; formatted C++ needs more of them to say the same.
MOST_LINES = {".py": 450, ".cpp": 550, ".h": 450, ".cu": 450}


def test_version_is_one() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert metadata.version("evit") == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert _native.core().version == version


def test_command_line_tells_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evit_models.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert metadata.version("evit") in done.stdout


@pytest.fixture
def wheel() -> list[str]:
    """Names of the installed files."""
    files = [str(path) for path in metadata.files("evit") or []]
    if not any(name.startswith("evit_kernels/") for name in files):
        pytest.skip("installed in development mode: there is no wheel to look into")
    return files


def test_wheel_holds_both_packages_with_their_types(wheel: list[str]) -> None:
    for package in ("evit_kernels", "evit_models"):
        assert f"{package}/__init__.py" in wheel
        assert f"{package}/py.typed" in wheel
        sources = {
            str(p.relative_to(ROOT)) for p in PYTHON_FILES if p.is_relative_to(ROOT / package)
        }
        assert sources <= set(wheel)


def test_wheel_holds_the_tiles_of_triton_kernels(wheel: list[str]) -> None:
    assert "evit_kernels/depthwise_conv3d/triton_tiles.json" in wheel


def test_wheel_holds_the_core_and_nothing_else(wheel: list[str]) -> None:
    assert any(name.startswith("evit_kernels/_core.") for name in wheel)
    others = [n for n in wheel if not n.startswith(("evit_kernels/", "evit_models/", "evit-"))]
    assert [Path(name).name for name in others] == ["evit"], "the command, and nothing besides"
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


@pytest.mark.parametrize("path", CORE_SOURCES, ids=lambda path: path.name)
def test_core_knows_neither_torch_nor_python(path: Path) -> None:
    included = re.findall(r'^\s*#\s*include\s*[<"](.+?)[>"]', path.read_text(), re.MULTILINE)
    forbidden = ("torch/", "ATen/", "c10/")
    if not path.name.startswith("bindings"):
        forbidden += ("pybind11/", "Python.h")
    if path.is_relative_to(ROOT / "csrc" / "include"):
        forbidden += ("omp.h", "immintrin", "arm_neon")
    if not path.is_relative_to(ROOT / "csrc" / "cuda"):
        forbidden += ("cuda",)
    wrong = [name for name in included if name.startswith(forbidden)]
    assert not wrong, f"{path.name} includes {wrong}"


def test_self_check_can_read_what_setup_builds() -> None:
    """tests/native/selfcheck.py takes the literals of setup.py, on x86-64 more than elsewhere."""
    self_check = runpy.run_path(str(ROOT / "tests" / "native" / "selfcheck.py"))
    literals = self_check["_constants"](ROOT / "setup.py")
    assert all(literals[name] for name in ("FLAGS", "OPERATORS", "PLAIN", "X86_LEVELS"))


def test_kernels_never_import_models() -> None:
    for path in _inside("evit_kernels"):
        wrong = [name for name in _imports(path) if name.split(".")[0] == "evit_models"]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_backends_never_import_each_other() -> None:
    checked = 0
    for path in _inside("evit_kernels"):
        if path.stem not in backends.NAMES or path.parent.name == "evit_kernels":
            continue
        others = {name for name in backends.NAMES if name != path.stem}
        wrong = [name for name in _imports(path) if others & set(name.split(".")[1:])]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
        checked += 1
    assert checked >= 8, "four operators with a reference and a native backend each"


@pytest.mark.parametrize(
    "path", [*CORE_SOURCES, *PYTHON_FILES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_are_one_room(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES[path.suffix], (
        f"{path.relative_to(ROOT)} has {lines} lines: two rooms?"
    )


def test_repository_names_no_machine() -> None:
    """Texts and results belong to everybody: no folders of the machine that wrote them."""
    named = re.compile(r"(?<![\w.])/(home|root|work|mnt|opt)/\w")
    texts = [*PYTHON_FILES, *CORE_SOURCES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    texts += [*ROOT.glob("benchmarks/results/**/*.json")]
    wrong = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in texts
        if path != Path(__file__).resolve()
        and (found := named.search(path.read_text(encoding="utf-8")))
    ]
    assert not wrong


def _inside(package: str) -> list[Path]:
    return [path for path in PYTHON_FILES if path.is_relative_to(ROOT / package)]


def _imports(path: Path) -> list[str]:
    """Full names of what a file imports, at any depth of nesting."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: imports are absolute here"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names

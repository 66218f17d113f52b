"""Builds the compiled core with ninja: one object per operator and instruction set.

Everything else about the package stands in pyproject.toml. The core includes no torch header and is
linked without an OpenMP runtime of its own: it uses the one that torch brings.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path

import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# One source per operator; each is compiled once per instruction set.
OPERATORS = (
    "batch_norm_activation",
    "dense_conv3d",
    "depthwise_conv3d",
    "layout",
    "relu_linear_attention",
    "pointwise_conv3d",
)
PLAIN = (
    "cpu/instruction_set.cpp",
    "cpu/memory.cpp",
    "cpu/openmp_of_clang.cpp",
    "bindings.cpp",
)
X86_LEVELS = {"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]}

FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
]


class BuildWithNinja(build_ext):
    """Writes a ninja file next to the objects and runs it; knows x86-64 levels and aarch64."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(self._ninja_file(target))
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(build)]
        if jobs := os.environ.get("EVIT_BUILD_JOBS"):
            command += ["-j", jobs]
        subprocess.run(command, check=True)

    def _ninja_file(self, target: Path) -> str:
        compiler = os.environ.get("CXX", "c++")
        version = subprocess.run(
            [*shlex.split(compiler), "--version"], check=True, capture_output=True, text=True
        ).stdout.splitlines()[0]
        includes = [CSRC / "include", pybind11.get_include(), sysconfig.get_paths()["include"]]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        defines = [
            f'-DEVIT_VERSION="{self.distribution.get_version()}"',
            f'-DEVIT_COMPILER="{version}"',
            *(["-DEVIT_X86_LEVELS"] if x86 else []),
        ]
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        flags = [*FLAGS, *defines, *(f"-I{path}" for path in includes), *extra]
        link = shlex.split(os.environ.get("LDFLAGS", ""))
        lines = [
            f"cxx = {compiler}",
            f"flags = {_ninja_words(flags)}",
            f"ldflags = {_ninja_words(link)}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $out",
            "rule link",
            "  command = $cxx -shared $in -o $out $ldflags",
            "  description = link $out",
        ]
        objects = []
        for name, source, options in _objects(x86):
            objects.append(name)
            lines.append(f"build {name}: compile {_ninja_path(CSRC / source)}")
            lines.append(f"  extra = {_ninja_words(options)}")
        lines.append(f"build {_ninja_path(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def _objects(x86: bool) -> list[tuple[str, str, list[str]]]:
    objects: list[tuple[str, str, list[str]]] = [
        (f"{Path(source).stem}.o", source, []) for source in PLAIN
    ]
    # The x86-64 baseline is there so that no machine meets an instruction it lacks, not for speed.
    plain = ["-DEVIT_PLAIN_ONLY"] if x86 else []
    levels = {"baseline": ["-DEVIT_BASELINE", *plain], **(X86_LEVELS if x86 else {})}
    for operator in OPERATORS:
        for level, options in levels.items():
            source = f"cpu/{operator}.cpp"
            objects.append((f"{operator}_{level}.o", source, [f"-DEVIT_ISA={level}", *options]))
    return objects


def _ninja_words(words: list[str]) -> str:
    return " ".join(shlex.quote(word).replace("$", "$$") for word in words)


def _ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension("evit_kernels._core", sources=[])],
    cmdclass={"build_ext": BuildWithNinja},
)

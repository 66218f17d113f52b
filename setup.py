"""Builds the compiled core with ninja: one object per operator and instruction set.

Where there is an nvcc, also the CUDA kernels, a library of their own. The environment decides:
EVIT_CUDA=auto (default), 0 (never) or 1 (an error without nvcc); EVIT_CUDA_ARCHS="87,90+PTX"
(default: those of the GPUs here, else 80, 87, 89 and 90 with PTX).

Everything else about the package stands in pyproject.toml. The core includes no torch header and is
linked without an OpenMP runtime of its own: it uses the one that torch brings.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
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
    "bindings_calls.cpp",
)
CUDA_OPERATORS = ("depthwise_conv3d", "relu_linear_attention")
CUDA_ARCHITECTURES = ("80", "87", "89", "90+PTX")
CUDA_FLAGS = [
    *("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-diag-suppress=20012"),
    "--threads=2",  # architectures of one source beside each other
]
# Processors of these levels know prefetches of what will be written, or take them for no operation.
X86_LEVELS = {
    "v3": ["-march=x86-64-v3", "-mprfchw"],
    "v4": ["-march=x86-64-v4", "-mprfchw"],
}

FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    # Where a short loop begins decides on up to a fifth of its speed: it is not left to chance.
    "-falign-loops=64",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
]
INCLUDE = f"-I{CSRC / 'include'}"
# For what is not there for speed: whoever installs waits for the compiler.
LIGHT = ["-O1"]


class BuildWithNinja(build_ext):
    """Writes a ninja file next to the objects and runs it; knows x86-64 levels and aarch64."""

    def run(self) -> None:
        # A build without CUDA must not ship the library of an earlier one in the same folder.
        if not any(ext.name.endswith("._cuda") for ext in self.extensions):
            root = ROOT if self.inplace else Path(self.build_lib)
            for old in (root / "evit_kernels").glob("_cuda.*"):
                old.unlink()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        cuda = ext.name.endswith("._cuda")
        text = _cuda_ninja_file(target) if cuda else self._ninja_file(target)
        (build / "build.ninja").write_text(text)
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(build)]
        if jobs := os.environ.get("EVIT_BUILD_JOBS"):
            command += ["-j", jobs]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            hint = "; EVIT_CUDA=0 builds without the CUDA kernels" if cuda else ""
            raise SystemExit(f"evit: compiling {ext.name} failed{hint}") from error

    def _ninja_file(self, target: Path) -> str:
        compiler = os.environ.get("CXX", "c++")
        version = subprocess.run(
            [*shlex.split(compiler), "--version"], check=True, capture_output=True, text=True
        ).stdout.splitlines()[0]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        defines = [
            f'-DEVIT_VERSION="{self.distribution.get_version()}"',
            f'-DEVIT_COMPILER="{version}"',
            *(["-DEVIT_X86_LEVELS"] if x86 else []),
        ]
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        flags = [*FLAGS, *defines, INCLUDE, *extra]
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
        chosen = any(option.startswith("-O") for option in extra)
        for name, source, options in _objects(x86):
            objects.append(name)
            if source.startswith("bindings"):
                options = [*options, *_python_includes()]
            if not chosen and (source.startswith("bindings") or "-DEVIT_PLAIN_ONLY" in options):
                options = [*options, *LIGHT]
            lines.append(f"build {name}: compile {_ninja_path(CSRC / source)}")
            lines.append(f"  extra = {_ninja_words(options)}")
        lines.append(f"build {_ninja_path(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def _python_includes() -> list[str]:
    """Where the bindings find pybind11 and Python; kernels are not told.

    In pip's isolation these folders have other names in every build, and what is compiled with
    other flags is compiled anew.
    """
    return [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]


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


def _nvcc() -> str | None:
    """The CUDA compiler, as EVIT_CUDA wants it."""
    wanted = os.environ.get("EVIT_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"evit: EVIT_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = next((f for h in homes if h and (f := shutil.which(f"{h}/bin/nvcc"))), None)
    found = found or shutil.which("nvcc")
    if found is None and wanted == "1":
        raise SystemExit("evit: EVIT_CUDA=1, but there is no nvcc on PATH or under CUDA_HOME")
    return found


def _cuda_architectures() -> list[str]:
    """Names like "87" (machine code) and "90+PTX" (and what newer devices compile themselves)."""
    if wanted := os.environ.get("EVIT_CUDA_ARCHS"):
        names = [name.strip() for name in wanted.replace(";", ",").split(",") if name.strip()]
        for name in names:
            if not name.removesuffix("+PTX").isdigit():
                raise SystemExit(
                    f"evit: EVIT_CUDA_ARCHS must be like 87,90+PTX, got {name!r} in {wanted!r}"
                )
        return names
    if query := shutil.which("nvidia-smi"):
        answer = subprocess.run(
            [query, "--query-gpu=compute_cap", "--format=csv,noheader"],
            check=False,
            capture_output=True,
            text=True,
        )
        seen = {line.strip().replace(".", "") for line in answer.stdout.splitlines()}
        if names := sorted(name for name in seen if name.isdigit()):
            return names
    return list(CUDA_ARCHITECTURES)


def _cuda_ninja_file(target: Path) -> str:
    nvcc = _nvcc()
    assert nvcc is not None
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    release = next(line for line in version.splitlines() if "release" in line).split(", ")[-1]
    names = _cuda_architectures()
    compiler = os.environ.get("CXX", "c++")
    # For ninja, so that another compiler in the same place compiles anew.
    made_by = f"-DEVIT_CUDA_RELEASE={re.sub(r'[^0-9A-Za-z]', '_', release)}"
    defines = [
        "-DEVIT_CUDA_MODULE=_cuda",
        f'-DEVIT_CUDA_ARCHITECTURES="{",".join(names)}"',
        f'-DEVIT_CUDA_COMPILER="nvcc {release}"',
    ]
    numbers = sorted({int(name.removesuffix("+PTX")) for name in names})
    targets = []
    for name in names:
        number = int(name.removesuffix("+PTX"))
        # No kernel asks which architecture of a generation it is on: all are made by way of the
        # oldest, so that the compiler's front end has one go.
        virtual = next(n for n in numbers if n // 10 == number // 10)
        targets.append(f"-gencode=arch=compute_{virtual},code=sm_{number}")
        if name.endswith("+PTX"):
            targets.append(f"-gencode=arch=compute_{virtual},code=compute_{virtual}")
    host = ["-ccbin", shlex.split(compiler)[0]]
    lines = [
        f"cxx = {compiler}",
        f"nvcc = {_ninja_words([nvcc, *host])}",
        f"flags = {_ninja_words([*FLAGS, *defines, INCLUDE, *_python_includes()])}",
        f"cudaflags = {_ninja_words([*CUDA_FLAGS, *targets, made_by, INCLUDE])}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule cuda",
        "  command = $nvcc -MMD -MF $out.d $cudaflags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        # The CUDA runtime is linked in: nothing has to be found at run time but the driver.
        "  command = $nvcc -shared -cudart static $in -o $out",
        "  description = link $out",
        f"build bindings_cuda.o: compile {_ninja_path(CSRC / 'bindings_cuda.cpp')}",
    ]
    objects = ["bindings_cuda.o"]
    for operator in CUDA_OPERATORS:
        objects.append(f"{operator}_cuda.o")
        source = _ninja_path(CSRC / "cuda" / f"{operator}.cu")
        lines.append(f"build {objects[-1]}: cuda {source}")
    lines.append(f"build {_ninja_path(target)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _ninja_words(words: list[str]) -> str:
    return " ".join(shlex.quote(word).replace("$", "$$") for word in words)


def _ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[
        Extension("evit_kernels._core", sources=[]),
        *([Extension("evit_kernels._cuda", sources=[])] if _nvcc() else []),
    ],
    cmdclass={"build_ext": BuildWithNinja},
)

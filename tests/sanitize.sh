#!/usr/bin/env bash
# Runs the operator tests on a core built with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/sanitize.sh [pytest arguments]
#
# Builds into a temporary folder and leaves the installed package and the build folder alone. Needs
# g++ and a `python` with the test extra installed. Without arguments it runs the tests of every
# operator that reach the core directly; those of the compiler only go the same way again, slower.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CXX=${CXX:-g++}

library() {
  local path
  path=$("$CXX" -print-file-name="$1")
  if [ ! -e "$path" ]; then
    echo "sanitize.sh: $CXX has no $1 (got '$path'); install its sanitizer runtimes or set CXX" >&2
    exit 2
  fi
  realpath "$path"
}

# A copy, so that objects with sanitizers never meet those of an ordinary build.
mkdir "$work/source" "$work/site"
(cd "$root" && tar -cf - --exclude='*.so' --exclude=__pycache__ \
  pyproject.toml setup.py README.md LICENSE csrc evit_kernels evit_models) | tar -xf - -C "$work/source"

# -O0 and checks out of line: at higher levels the unrolled vector code takes minutes to compile. The
# vectors and what they load and store are those of a real build.
build=(python -m pip install --quiet --no-deps --target "$work/site")
if python -c 'import pybind11, ninja, setuptools' 2>/dev/null; then
  build+=(--no-build-isolation)
fi
CXXFLAGS="-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all --param=asan-instrumentation-with-call-threshold=0" \
LDFLAGS="-fsanitize=address,undefined" \
EVIT_CUDA=0 \
  "${build[@]}" "$work/source"

# The CUDA kernels, which the tests compile for the host, carry them too.
export EVIT_EMULATION_FLAGS="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"

# From here on every process carries the sanitizers. libstdc++ must be there before them, because
# they intercept the exceptions that torch throws. Leaks are Python's own business.
export PYTHONPATH=$work/site
export LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

cd "$work/site" # so that the instrumented package is imported, not the one in the checkout
python - <<'PYTHON'
import sys
from evit_kernels import _native

core = _native.core()
with open(core.__file__, "rb") as file:
    if b"__asan_init" not in file.read():
        sys.exit(f"sanitize.sh: {core.__file__} is not instrumented")
print("instrumented:", core.compiler, core.instruction_sets())
PYTHON

if [ $# -eq 0 ]; then
  shopt -s nullglob
  kernels=$root/tests/kernels
  set -- "$kernels"/test_{depthwise_conv3d,dense_conv3d,pointwise_conv3d,pointwise_depthwise_conv3d,batch_norm_activation,relu_linear_attention}*.py \
    -k "not compil and not export and not opcheck and not autocast and not repeats and not digits and not gradcheck"
fi
# On all cores, where pytest-xdist is there.
parallel=()
if python -c 'import xdist' 2>/dev/null; then
  parallel=(-n auto)
fi
python -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q "${parallel[@]}" \
  --hypothesis-profile evit-sanitize --durations 5 "$@"

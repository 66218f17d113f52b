#!/usr/bin/env bash
# Runs the CUDA kernels under compute-sanitizer: memcheck, then racecheck.
#
#   tests/compute_sanitizer.sh [pytest arguments]
#
# Needs a GPU that torch sees, compute-sanitizer (it comes with the CUDA toolkit; COMPUTE_SANITIZER
# names another), and a `python` with the package and its test extra installed. Where one of them is
# missing it says which, and exits with 2. Kernels run tens to hundreds of times slower under these
# tools, so without arguments a small set is tried: every operator with its gradients, in float32
# and in the 16-bit types, on tensors whose sizes leave remainders in every loop.
#
# Memory comes from cudaMalloc alone meanwhile: in PyTorch's caching allocator a kernel that writes
# past the end of one tensor would write into another, and nobody would notice.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || true)}
if [ -z "$sanitizer" ] && [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" ]; then
  sanitizer=${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer
fi
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "compute_sanitizer.sh: torch sees no CUDA device" >&2
  exit 2
fi
if [ -z "$sanitizer" ] || ! command -v "$sanitizer" >/dev/null; then
  echo "compute_sanitizer.sh: there is no compute-sanitizer; install it or set COMPUTE_SANITIZER" >&2
  exit 2
fi

if [ $# -eq 0 ]; then
  set -- "$root/tests/kernels/test_on_device.py" -k "agrees and (cuda-native or cuda-triton)"
fi
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
status=0
for tool in memcheck racecheck; do
  echo "=== $tool"
  "$sanitizer" --tool "$tool" --error-exitcode 1 --launch-timeout 0 --target-processes all \
    "$(command -v pytest)" -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q "$@" ||
    status=1
done
exit "$status"

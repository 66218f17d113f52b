#!/usr/bin/env bash
# Everything that a machine with a GPU is for, in order of worth, each step under a time limit.
#
#   benchmarks/gpu_session.sh [--dry-run] FOLDER [STEP...]
#
# Run it in a fresh checkout, with torch, a `python` to install into, and whatever the extra [test]
# names. Without STEPs all of them run; what they print goes to FOLDER/STEP.log, results of
# benchmarks to FOLDER/*.json, what became of each step to FOLDER/summary.txt. A step that fails or
# takes too long does not stop the next. Exit code: 0 if all went well, 1 if a step failed, 2 without
# a GPU or with wrong arguments. LIMIT_SECONDS=N limits every step; --dry-run prints the commands.
set -euo pipefail

# name, seconds, command. FOLDER stands for the folder. The fused operators' own tests come first:
# where they fail, speeds are worth nothing. `pytest` and not `python -m pytest`, which would find the
# bare sources of the checkout before the installed package.
steps() {
  cat <<'STEPS'
install 400 python -m pip install --no-build-isolation --no-deps .
available 60 cd / && python -m evit_kernels
test-device 300 pytest -q --maxfail 20 tests/kernels/test_on_device.py -k cuda
test-operators 500 pytest -q --maxfail 40 tests/kernels/test_depthwise_conv3d_*.py tests/kernels/test_relu_linear_attention.py -k "cuda-native or cuda-triton"
bench-depthwise 480 pytest benchmarks/bench_gpu_depthwise_conv3d.py --benchmark-only --budget 400 --benchmark-json FOLDER/depthwise.json --benchmark-columns median,min
bench-attention 300 pytest benchmarks/bench_gpu_relu_linear_attention.py --benchmark-only --budget 220 --benchmark-json FOLDER/attention.json --benchmark-columns median,min
bench-models 500 pytest benchmarks/bench_gpu_models.py --benchmark-only --budget 240 --benchmark-json FOLDER/models.json --benchmark-columns median,min
test-models 400 pytest -q --maxfail 10 tests/models/test_models_on_device.py -k cuda
test-large 200 pytest -q tests/kernels/test_large_tensors.py -k cuda
sanitizer 500 tests/compute_sanitizer.sh
bench-shapes 560 pytest benchmarks/bench_gpu_depthwise_conv3d.py benchmarks/bench_gpu_relu_linear_attention.py --benchmark-only --shapes all --peers NCDHW,channels -k "b1 and bfloat16" --budget 500 --benchmark-json FOLDER/shapes.json --benchmark-columns median
STEPS
}

usage() {
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
[ $# -ge 1 ] || usage
case $1 in -*) usage ;; esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
for wanted; do
  if ! steps | grep -q "^$wanted "; then
    echo "gpu_session.sh: no step is called $wanted; there are $(steps | cut -d' ' -f1 | xargs)" >&2
    exit 2
  fi
done
if [ -z "$dry" ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu_session.sh: torch sees no CUDA device" >&2
  exit 2
fi

cd "$root"
worst=0
while read -r name seconds command; do
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then
    continue
  fi
  command=${command//FOLDER/$folder}
  limit=${LIMIT_SECONDS:-$seconds}
  if [ -n "$dry" ]; then
    echo "$name ($limit s): $command"
    continue
  fi
  started=$SECONDS status=0
  # Interrupted first: pytest then still tells what it has measured.
  timeout --signal=INT --kill-after=20 "$limit" bash -c "$command" \
    >"$folder/$name.log" 2>&1 </dev/null || status=$?
  case $status in
    0) said=passed ;;
    124) said="stopped after $limit s" ;;
    *) said="failed with $status" ;;
  esac
  [ "$status" -eq 0 ] || worst=1
  last=$(grep -v '^[[:space:]]*$' "$folder/$name.log" | tail -1 | cut -c1-160 || true)
  echo "$name: $said in $((SECONDS - started)) s: $last" | tee -a "$folder/summary.txt"
done < <(steps)
exit "$worst"

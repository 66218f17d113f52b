#!/usr/bin/env bash
# Cross-compiles the core and its self-check for aarch64 and runs it under an emulator.
#
# Needs a cross-compiler and qemu's user mode (on Debian: g++-aarch64-linux-gnu, qemu-user-static);
# says so and ends with 77 where one is missing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
compiler=aarch64-linux-gnu-g++
runner=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
if ! command -v "$compiler" >/dev/null; then
  echo "run_aarch64.sh: skipped, there is no $compiler (Debian: g++-aarch64-linux-gnu)"
  exit 77
fi
if [ -z "$runner" ]; then
  echo "run_aarch64.sh: skipped, there is no qemu-aarch64 (Debian: qemu-user-static)"
  exit 77
fi
exec python3 "$here/selfcheck.py" --compiler "$compiler" --static --runner "$runner"

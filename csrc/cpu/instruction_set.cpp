// Picks the instruction set: at load time the best that was compiled in and that runs here.
#include <atomic>

#include "evit/cpu.h"

namespace evit::cpu {
namespace {

bool supported(InstructionSet set) {
#ifdef EVIT_X86_LEVELS
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (set == InstructionSet::kX86V4) return v4;
  if (set == InstructionSet::kX86V3) return v3;
#endif
  return set == InstructionSet::kBaseline;
}

InstructionSet best() {
  if (supported(InstructionSet::kX86V4)) return InstructionSet::kX86V4;
  if (supported(InstructionSet::kX86V3)) return InstructionSet::kX86V3;
  return InstructionSet::kBaseline;
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{best()};
  return set;
}

}  // namespace

InstructionSet instruction_set() {
  return current().load(std::memory_order_relaxed);
}

bool set_instruction_set(InstructionSet wanted) {
  if (!supported(wanted)) return false;
  current().store(wanted, std::memory_order_relaxed);
  return true;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kX86V4:
      return "x86-64-v4";
    case InstructionSet::kX86V3:
      return "x86-64-v3";
    case InstructionSet::kBaseline:
      break;
  }
#ifdef __aarch64__
  return "aarch64-neon";
#else
  return "x86-64";
#endif
}

}  // namespace evit::cpu

// One source per operator, compiled once per instruction set; the baseline object also holds the
// public entry, which calls the build for the instruction set in use.
//
// The build defines EVIT_ISA (the namespace of this object) and, for the baseline, EVIT_BASELINE.
#pragma once

#include "evit/common.h"
#include "evit/cpu.h"

#ifdef EVIT_X86_LEVELS
#define EVIT_DECLARE_LEVELS(result, name, parameters) \
  namespace v3 {                                      \
  result name parameters;                             \
  }                                                   \
  namespace v4 {                                      \
  result name parameters;                             \
  }
#define EVIT_CALL(name, arguments)  \
  switch (instruction_set()) {      \
    case InstructionSet::kX86V4:    \
      return v4::name arguments;    \
    case InstructionSet::kX86V3:    \
      return v3::name arguments;    \
    case InstructionSet::kBaseline: \
      break;                        \
  }                                 \
  return baseline::name arguments;
#else
#define EVIT_DECLARE_LEVELS(result, name, parameters)
#define EVIT_CALL(name, arguments) return baseline::name arguments;
#endif

// Defines evit::cpu::name, to be used at file scope in the operator's source.
#ifdef EVIT_BASELINE
#define EVIT_ENTRY(result, name, parameters, arguments) \
  namespace evit::cpu {                                 \
  EVIT_DECLARE_LEVELS(result, name, parameters)         \
  result name parameters {                              \
    EVIT_CALL(name, arguments)                          \
  }                                                     \
  }
#else
#define EVIT_ENTRY(result, name, parameters, arguments)
#endif

// The machine under the kernels: instruction sets (what was compiled in, what runs here, which one
// is in use), pages of memory, and caches.
#pragma once

#include <cstdint>

namespace evit::cpu {

enum class InstructionSet : int { kBaseline = 0, kX86V3 = 1, kX86V4 = 2 };

// The one in use: at load time the best that is both compiled in and supported here.
InstructionSet instruction_set();

// Switches (for tests and comparisons). Returns false when not compiled in or not supported here.
bool set_instruction_set(InstructionSet wanted);

// "baseline" is plain x86-64 with SSE2, or aarch64 with NEON.
const char* name_of(InstructionSet set);

// Hints that [address, address + bytes), about to be written, is best backed by large pages.
void advise_huge_pages(void* address, int64_t bytes);

// The size of a core's second-level cache; of a small one where the system does not tell.
int64_t second_level_cache_bytes();

// The size of the third-level cache; 0 where there is none or the system does not tell.
int64_t third_level_cache_bytes();

// Whether prefetches into the second-level cache are worth a step of their own: whether the
// processor keeps more of them waiting for memory than of those into the first-level cache.
bool prefetches_in_two_steps();

}  // namespace evit::cpu

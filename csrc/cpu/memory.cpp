// Asks the system for large pages where a new tensor is about to be written for the first time.
#include <sys/mman.h>

#include <cstdint>

#include "evit/cpu.h"

namespace evit::cpu {

void advise_huge_pages(void* address, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  // A page fault costs about as much as writing its 4 KiB several times over. On a large page there
  // is one fault for 512 of them. Where the system grants none, this changes nothing.
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(address) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(address) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}

}  // namespace evit::cpu

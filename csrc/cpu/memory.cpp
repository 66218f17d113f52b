// What the system knows of memory: large pages, asked for where a new tensor is about to be written
// for the first time, and the size of a cache.
#include <sys/mman.h>
#include <unistd.h>

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

int64_t second_level_cache_bytes() {
  constexpr int64_t kSmall = 512 * 1024;
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return kSmall;
}

int64_t third_level_cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 0;
}

}  // namespace evit::cpu

// Memory that is about to be written for the first time.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vimae {

// Asks for huge pages, of 2 MB on x86, where a large output has none yet: to be given memory in
// pages of 4 KB takes several times as long as to write it. Whether it is granted changes nothing
// else. Static, as every instruction set compiles it.
static inline void prefer_huge_pages(void* start, std::int64_t bytes) {
#if defined(__linux__)
  if (bytes < std::int64_t(4) << 20) return;
  const std::uintptr_t page = std::uintptr_t(sysconf(_SC_PAGESIZE));
  const std::uintptr_t first = (std::uintptr_t(start) + page - 1) / page * page;
  const std::uintptr_t last = (std::uintptr_t(start) + std::uintptr_t(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

}  // namespace vimae

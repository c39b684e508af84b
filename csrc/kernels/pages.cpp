#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssmn {

void prefer_large_pages(void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int64_t kLargePage = 2 << 20;
    constexpr int64_t kWorthwhile = 32 << 20;  // from this size on, allocators take blocks from the system every time
    if (begin == nullptr || bytes < kWorthwhile) return;
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = (address + kLargePage - 1) / kLargePage * kLargePage;
    const uintptr_t last = (address + bytes) / kLargePage * kLargePage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)begin;
    (void)bytes;
#endif
}

}  // namespace ssmn

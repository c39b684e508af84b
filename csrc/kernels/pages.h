// A word to the system about large outputs.
#ifndef SSMN_PAGES_H
#define SSMN_PAGES_H

#include <cstdint>

namespace ssmn {

// Asks for large pages behind an output that is about to be written. A fresh block of many megabytes otherwise costs
// a fault for every 4 KiB: half as long again as the memory's own work. Does nothing to small ones, or where there is
// no such thing.
void prefer_large_pages(void* begin, int64_t bytes);

}  // namespace ssmn

#endif

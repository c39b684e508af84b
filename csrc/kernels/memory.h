#ifndef SSMN_MEMORY_H
#define SSMN_MEMORY_H

#include <cstdint>

namespace ssmn {

constexpr int64_t kChunk = 64;

}  // namespace ssmn

#endif

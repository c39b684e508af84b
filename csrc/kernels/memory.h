#ifndef SSMN_MEMORY_H
#define SSMN_MEMORY_H

#include <cstdint>

namespace ssmn {

constexpr int64_t kChunk = 64;          // steps that are worked on together, at most
constexpr int64_t kMemoryWindow = 512;  // steps between two states that the forward pass stores

}  // namespace ssmn

#endif

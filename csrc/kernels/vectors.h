// Rows of floats of any length.
#ifndef SSMN_VECTORS_H
#define SSMN_VECTORS_H

#include <cstdint>

#include "simd.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

SSMN_INLINE int64_t smaller(int64_t x, int64_t y) {
    return x < y ? x : y;
}

SSMN_INLINE int64_t larger(int64_t x, int64_t y) {
    return x > y ? x : y;
}

// The first `count` < kLanes floats; the other lanes are 0.
SSMN_INLINE Vec load_part(const float* from, int64_t count) {
    float lane[kLanes] = {};
    for (int64_t l = 0; l < count; ++l) lane[l] = from[l];
    return load(lane);
}

SSMN_INLINE void store_part(float* to, Vec x, int64_t count) {
    float lane[kLanes];
    store(lane, x);
    for (int64_t l = 0; l < count; ++l) to[l] = lane[l];
}

// y += x * factor
inline void add_scaled(int64_t n, float factor, const float* x, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

inline void scale(int64_t n, float factor, float* x) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

inline float dot(int64_t n, const float* x, const float* y) {
    Vec lanes = {};
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) lanes += load(x + i) * load(y + i);
    for (; i < n; ++i) tail += x[i] * y[i];
    return reduce_add(lanes) + tail;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

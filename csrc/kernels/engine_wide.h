// Sixteen floats, the rows of a panel, in as many registers as the path needs for them.
#ifndef SSMN_ENGINE_WIDE_H
#define SSMN_ENGINE_WIDE_H

#include <cstdint>

#include "simd.h"
#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kWide = 16;
constexpr int64_t kParts = kWide / kLanes;

struct Wide {
    Vec part[kParts];
};

template <typename Function>
SSMN_INLINE Wide each_part(const Function& function) {
    Wide made;
    for (int64_t p = 0; p < kParts; ++p) made.part[p] = function(p);
    return made;
}

SSMN_INLINE Wide zeros() {
    return each_part([](int64_t) { return Vec{}; });
}

SSMN_INLINE Wide load_wide(const float* from) {
    return each_part([&](int64_t p) { return load(from + p * kLanes); });
}

SSMN_INLINE void store_wide(float* to, const Wide& x) {
    for (int64_t p = 0; p < kParts; ++p) store(to + p * kLanes, x.part[p]);
}

// The first `count` of them.
SSMN_INLINE void store_wide(float* to, const Wide& x, int64_t count) {
    if (count >= kWide) return store_wide(to, x);
    float all[kWide];
    store_wide(all, x);
    for (int64_t i = 0; i < count; ++i) to[i] = all[i];
}

SSMN_INLINE Wide load_wide(const float* from, int64_t count) {
    if (count >= kWide) return load_wide(from);
    float all[kWide] = {};
    for (int64_t i = 0; i < count; ++i) all[i] = from[i];
    return load_wide(all);
}

// sum += x * y
SSMN_INLINE void add_product(Wide& sum, const Wide& x, Vec y) {
    for (int64_t p = 0; p < kParts; ++p) sum.part[p] += x.part[p] * y;
}

SSMN_INLINE float reduce_add(const Wide& x) {
    Vec all = x.part[0];
    for (int64_t p = 1; p < kParts; ++p) all += x.part[p];
    return reduce_add(all);
}

SSMN_INLINE Vec sigmoid(Vec x) {
    const Vec e = exp_nonpositive(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : broadcast(1.0f)) / (e + 1.0f);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

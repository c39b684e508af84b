// Cross-entropy of rows of logits, which become their own gradients in place. A task is a row.
#include <cmath>

#include "parallel.h"
#include "path.h"
#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Vectors that are added up in float before their sum goes on in double.
constexpr int64_t kSumBlock = 64 * kLanes;

SSMN_INLINE Vec load_any(const float* from) {
    return load(from);
}

SSMN_INLINE Vec load_any(const uint16_t* from) {
    return load_bfloat16(from);
}

SSMN_INLINE void store_any(float* to, Vec x) {
    store(to, x);
}

SSMN_INLINE void store_any(uint16_t* to, Vec x) {
    store_bfloat16(to, x);
}

SSMN_INLINE int64_t padded(int64_t classes) {
    return (classes + kLanes - 1) / kLanes * kLanes;
}

// The row in float, filled up with -infinity to whole vectors; returns its largest number.
template <typename Number>
inline float spread(const Number* row, int64_t classes, float* wide) {
    Vec top = broadcast(-INFINITY);
    int64_t i = 0;
    for (; i + kLanes <= classes; i += kLanes) {
        const Vec x = load_any(row + i);
        top = maximum(x, top);
        store(wide + i, x);
    }
    if (i < classes) {
        Number rest[kLanes];
        std::memcpy(rest, row + i, sizeof(Number) * static_cast<size_t>(classes - i));
        std::memset(rest + (classes - i), 0, sizeof(Number) * static_cast<size_t>(kLanes - (classes - i)));
        const VecInt is_there = lane_numbers() < static_cast<int32_t>(classes - i);
        const Vec x = select(is_there, load_any(rest), broadcast(-INFINITY));
        top = maximum(x, top);
        store(wide + i, x);
    }
    return reduce_max(top);
}

// x becomes exp(x - top); returns the sum.
inline double exponentiate(int64_t count, float top, float* x) {
    double sum = 0.0;
    for (int64_t begin = 0; begin < count; begin += kSumBlock) {
        const int64_t end = smaller(begin + kSumBlock, count);
        Vec part = {};
        for (int64_t i = begin; i < end; i += kLanes) {
            const Vec e = exp_nonpositive(load(x + i) - top);
            part += e;
            store(x + i, e);
        }
        sum += static_cast<double>(reduce_add(part));
    }
    return sum;
}

template <typename Number>
inline void put_scaled(int64_t classes, float factor, const float* x, Number* row) {
    int64_t i = 0;
    for (; i + kLanes <= classes; i += kLanes) store_any(row + i, load(x + i) * factor);
    if (i < classes) {
        Number rest[kLanes];
        store_any(rest, load(x + i) * factor);
        std::memcpy(row + i, rest, sizeof(Number) * static_cast<size_t>(classes - i));
    }
}

template <typename Number>
inline float run_row(int64_t classes, int64_t target, float scale, Number* row, float* wide) {
    const float top = spread(row, classes, wide), wanted = wide[target];
    const double sum = exponentiate(padded(classes), top, wide);
    wide[target] -= static_cast<float>(sum);
    put_scaled(classes, static_cast<float>(scale / sum), wide, row);
    return static_cast<float>(std::log(sum) + (static_cast<double>(top) - static_cast<double>(wanted)));
}

}  // namespace

int32_t cross_entropy(
    const ssmn_cross_entropy_call* call, const int64_t* targets, void* logits, float* losses, int32_t threads) {
    const int64_t V = call->classes;
    const double operations = 10.0 * static_cast<double>(call->rows) * static_cast<double>(V);
    return parallel_for(call->rows, threads, operations, padded(V), [&](int64_t n, float* wide) {
        losses[n] = call->format == SSMN_BFLOAT16
                        ? run_row(V, targets[n], call->scale, static_cast<uint16_t*>(logits) + n * V, wide)
                        : run_row(V, targets[n], call->scale, static_cast<float*>(logits) + n * V, wide);
    });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

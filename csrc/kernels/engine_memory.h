// One head's memory S [K, stride], a few columns at a time: columns do not depend on each other.
#ifndef SSMN_ENGINE_MEMORY_H
#define SSMN_ENGINE_MEMORY_H

#include <cstdint>

#include "engine_wide.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

struct Coefficients {
    float write, erase, keep;

    bool closed() const { return write == 0.0f && erase == 0.0f && keep == 1.0f; }
};

// S = keep S + k u^T with u = write v - keep erase S^T k, and o = S^T q, in one pass that reads and one that writes:
// S_after^T q = keep S^T q + (k.q) u.
template <int64_t Columns>
SSMN_INLINE void write_and_read(
    float* memory,
    int64_t stride,
    int64_t rows,
    const float* k,
    const float* q,
    const float* v,
    Coefficients c,
    float* o) {
    Wide recalled[Columns], found[Columns];
    for (int64_t j = 0; j < Columns; ++j) recalled[j] = found[j] = zeros();
    for (int64_t i = 0; i < rows; ++i) {
        const Vec key = broadcast(k[i]), query = broadcast(q[i]);
        for (int64_t j = 0; j < Columns; ++j) {
            const Wide line = load_wide(memory + i * stride + j * kWide);
            add_product(recalled[j], line, key);
            add_product(found[j], line, query);
        }
    }
    if (c.closed()) {
        for (int64_t j = 0; j < Columns; ++j) store_wide(o + j * kWide, found[j]);
        return;
    }
    const float across = dot(rows, k, q), gone = c.keep * c.erase;
    Wide u[Columns];
    for (int64_t j = 0; j < Columns; ++j) {
        const Wide value = load_wide(v + j * kWide);
        u[j] = each_part([&](int64_t p) { return value.part[p] * c.write - recalled[j].part[p] * gone; });
        store_wide(
            o + j * kWide, each_part([&](int64_t p) { return found[j].part[p] * c.keep + u[j].part[p] * across; }));
    }
    const Vec keep = broadcast(c.keep);
    for (int64_t i = 0; i < rows; ++i) {
        const Vec key = broadcast(k[i]);
        for (int64_t j = 0; j < Columns; ++j) {
            float* at = memory + i * stride + j * kWide;
            Wide line = load_wide(at);
            line = each_part([&](int64_t p) { return line.part[p] * keep + u[j].part[p] * key; });
            store_wide(at, line);
        }
    }
}

// o = S^T q
template <int64_t Columns>
SSMN_INLINE void read_memory(const float* memory, int64_t stride, int64_t rows, const float* q, float* o) {
    Wide found[Columns];
    for (int64_t j = 0; j < Columns; ++j) found[j] = zeros();
    for (int64_t i = 0; i < rows; ++i) {
        const Vec query = broadcast(q[i]);
        for (int64_t j = 0; j < Columns; ++j) add_product(found[j], load_wide(memory + i * stride + j * kWide), query);
    }
    for (int64_t j = 0; j < Columns; ++j) store_wide(o + j * kWide, found[j]);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

// Window attention of a few queries over one key head's ring.
#ifndef SSMN_ENGINE_ATTENTION_H
#define SSMN_ENGINE_ATTENTION_H

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine_layout.h"
#include "engine_wide.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Position p lies in slot p % slots. Keys are stored 16 slots at a time, column by column, so that 16 scores are one
// chain of products; values row by row.
struct Ring {
    float* keys;    // [slots / 16, width, 16]
    float* values;  // [slots, stride]
    int64_t slots;
    int64_t width;
    int64_t stride;

    void put(int64_t position, const float* key, const float* value) const {
        const int64_t slot = position % slots;
        float* block = keys + slot / kWide * width * kWide + slot % kWide;
        for (int64_t d = 0; d < width; ++d) block[d * kWide] = key[d];
        std::memcpy(values + slot * stride, value, sizeof(float) * width);
    }
};

struct Query {
    const float* q;     // [width], scaled
    float* o;           // [width]
    int64_t position;   // sees the `window` positions up to this one
    const float* sink;  // or null
};

// The longest chain of queries and blocks whose sums stay in the registers.
constexpr int64_t kScoreTile = SSMN_LANES == 16 ? 12 : SSMN_LANES == 8 ? 4 : 2;
constexpr int64_t kValueTile = SSMN_LANES == 16 ? 24 : SSMN_LANES == 8 ? 4 : 2;

// A query's scores of blocks [block, block + Blocks), 16 at a time, at scores + (block - origin) * 16.
template <int64_t Count, int64_t Blocks>
SSMN_INLINE void score_blocks(
    const Ring& ring, const Query* queries, int64_t block, int64_t origin, float* scores, int64_t score_stride) {
    Wide sum[Count][Blocks];
    const float* keys[Blocks];
    for (int64_t b = 0; b < Blocks; ++b) keys[b] = ring.keys + (block + b) % (ring.slots / kWide) * ring.width * kWide;
    for (int64_t i = 0; i < Count; ++i)
        for (int64_t b = 0; b < Blocks; ++b) sum[i][b] = zeros();
    for (int64_t d = 0; d < ring.width; ++d) {
        Wide line[Blocks];
        for (int64_t b = 0; b < Blocks; ++b) line[b] = load_wide(keys[b] + d * kWide);
        for (int64_t i = 0; i < Count; ++i) {
            const Vec value = broadcast(queries[i].q[d]);
            for (int64_t b = 0; b < Blocks; ++b) add_product(sum[i][b], line[b], value);
        }
    }
    for (int64_t i = 0; i < Count; ++i)
        for (int64_t b = 0; b < Blocks; ++b)
            store_wide(scores + i * score_stride + (block + b - origin) * kWide, sum[i][b]);
}

// Columns [column, column + 16 * Columns) of the weighted sum of values, over `blocks` blocks from `origin` on.
template <int64_t Count, int64_t Columns>
SSMN_INLINE void weigh_values(
    const Ring& ring,
    const Query* queries,
    int64_t column,
    int64_t origin,
    int64_t blocks,
    const float* weights,
    int64_t weight_stride,
    const float* factors) {
    Wide sum[Count][Columns];
    for (int64_t i = 0; i < Count; ++i)
        for (int64_t c = 0; c < Columns; ++c) sum[i][c] = zeros();
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t slot = (origin + b) % (ring.slots / kWide) * kWide;
        const float* values = ring.values + slot * ring.stride + column;
        for (int64_t s = 0; s < kWide; ++s) {
            Wide line[Columns];
            for (int64_t c = 0; c < Columns; ++c) line[c] = load_wide(values + s * ring.stride + c * kWide);
            for (int64_t i = 0; i < Count; ++i) {
                const Vec weight = broadcast(weights[i * weight_stride + b * kWide + s]);
                for (int64_t c = 0; c < Columns; ++c) add_product(sum[i][c], line[c], weight);
            }
        }
    }
    for (int64_t i = 0; i < Count; ++i)
        for (int64_t c = 0; c < Columns; ++c) {
            const int64_t at = column + c * kWide;
            const Wide made = each_part([&](int64_t p) { return sum[i][c].part[p] * factors[i]; });
            store_wide(queries[i].o + at, made, ring.width - at);
        }
}

// The numbers 0 .. 15 as floats.
SSMN_INLINE Wide sixteen_numbers() {
    float all[kWide];
    for (int64_t i = 0; i < kWide; ++i) all[i] = static_cast<float>(i);
    return load_wide(all);
}

// Queries in the order of their positions. A query's result does not depend on the others: what lies outside of its
// window has the weight 0, and its slots are summed up in the order of their positions.
template <int64_t Count>
inline void attend(const Ring& ring, const Query* queries, int64_t window, float* scores, int64_t score_stride) {
    constexpr float kNever = -INFINITY;
    const int64_t earliest = larger(queries[0].position - window + 1, 0);
    const int64_t origin = earliest / kWide, blocks = queries[Count - 1].position / kWide + 1 - origin;
    constexpr int64_t kBlocks = kScoreTile / Count < 1 ? 1 : kScoreTile / Count > 4 ? 4 : kScoreTile / Count;
    int64_t b = 0;
    for (; b + kBlocks <= blocks; b += kBlocks)
        score_blocks<Count, kBlocks>(ring, queries, origin + b, origin, scores, score_stride);
    for (; b < blocks; ++b) score_blocks<Count, 1>(ring, queries, origin + b, origin, scores, score_stride);

    float factors[Count];
    const Wide numbers = sixteen_numbers();
    for (int64_t i = 0; i < Count; ++i) {
        float* line = scores + i * score_stride;
        const int64_t from = larger(queries[i].position - window + 1, 0) - origin * kWide;
        const int64_t to = queries[i].position - origin * kWide;
        Wide most = each_part([&](int64_t) { return broadcast(kNever); });
        for (int64_t at = 0; at < blocks * kWide; at += kWide) {
            Wide x = load_wide(line + at);
            if (at < from || at + kWide > to + 1) {
                const float low = static_cast<float>(from - at), high = static_cast<float>(to - at);
                x = each_part([&](int64_t p) {
                    const Vec n = numbers.part[p];
                    return select((n >= low) & (n <= high), x.part[p], broadcast(kNever));
                });
                store_wide(line + at, x);
            }
            most = each_part([&](int64_t p) { return maximum(x.part[p], most.part[p]); });
        }
        Vec highest = most.part[0];
        for (int64_t p = 1; p < kParts; ++p) highest = maximum(highest, most.part[p]);
        float top = reduce_max(highest);
        const float sink = queries[i].sink == nullptr ? kNever : *queries[i].sink;
        top = sink > top ? sink : top;
        Wide total = zeros();
        for (int64_t at = 0; at < blocks * kWide; at += kWide) {
            const Wide x = load_wide(line + at);
            const Wide weight = each_part([&](int64_t p) { return exp_nonpositive(x.part[p] - top); });
            store_wide(line + at, weight);
            total = each_part([&](int64_t p) { return total.part[p] + weight.part[p]; });
        }
        const float sinks = queries[i].sink == nullptr ? 0.0f : std::exp(sink - top);
        factors[i] = 1.0f / (reduce_add(total) + sinks);
    }

    constexpr int64_t kColumns = kValueTile / Count < 1 ? 1 : kValueTile / Count > 4 ? 4 : kValueTile / Count;
    int64_t column = 0;
    for (; column + kColumns * kWide <= ring.stride; column += kColumns * kWide)
        weigh_values<Count, kColumns>(ring, queries, column, origin, blocks, scores, score_stride, factors);
    for (; column < ring.stride; column += kWide)
        weigh_values<Count, 1>(ring, queries, column, origin, blocks, scores, score_stride, factors);
}

// Any number of queries in the order of their positions.
inline void attend_all(
    const Ring& ring, const Query* queries, int64_t count, int64_t window, float* scores, int64_t score_stride) {
    int64_t i = 0;
    if (SSMN_LANES == 16) {
        for (; i + 6 <= count; i += 6) attend<6>(ring, queries + i, window, scores, score_stride);
        for (; i + 3 <= count; i += 3) attend<3>(ring, queries + i, window, scores, score_stride);
    }
    for (; i + 2 <= count; i += 2) attend<2>(ring, queries + i, window, scores, score_stride);
    for (; i < count; ++i) attend<1>(ring, queries + i, window, scores, score_stride);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

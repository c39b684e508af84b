// The window attention of a few queries: streaming step by step. Nothing is packed, every key is read once where it is.
#ifndef SSMN_WINDOW_FEW_H
#define SSMN_WINDOW_FEW_H

#include <cmath>
#include <cstdint>

#include "window_rows.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kFew = 4;

// Keys whose scores are known before their values are read.
constexpr int64_t kTurn = 64;

// Scratch, sums, a query, own keys and values, scores.
inline int64_t few_workspace(const WindowPlan& plan) {
    return (3 + 2 * kTurn) * round_up(plan.sizes.width, kLanes) + kTurn;
}

SSMN_INLINE float dot_row(int64_t n, const float* x, const float* y) {
    Vec lanes = {};
    float tail = 0.0f;
    int64_t d = 0;
    for (; d + kLanes <= n; d += kLanes) lanes += load(x + d) * load(y + d);
    for (; d < n; ++d) tail += x[d] * y[d];
    return reduce_add(lanes) + tail;
}

// sums [D] += the weights [count] times rows of values.
inline void add_weighted(int64_t count, const float* weights, const float* const* rows, int64_t width, float* sums) {
    constexpr int64_t wide = 4 * kLanes;
    int64_t d = 0;
    for (; d + wide <= width; d += wide) {
        Vec sum[4];
        for (int64_t l = 0; l < 4; ++l) sum[l] = load(sums + d + l * kLanes);
        for (int64_t s = 0; s < count; ++s)
            for (int64_t l = 0; l < 4; ++l) sum[l] += load(rows[s] + d + l * kLanes) * weights[s];
        for (int64_t l = 0; l < 4; ++l) store(sums + d + l * kLanes, sum[l]);
    }
    for (int64_t s = 0; s < count; ++s)
        for (int64_t e = d; e < width; ++e) sums[e] += rows[s][e] * weights[s];
}

// The queries of a slab of at most kFew, for the heads that share a key head.
inline void attend_few(
    const WindowPlan& plan,
    const WindowForward& call,
    const WindowRun& run,
    const WindowSlab& slab,
    int64_t key_head,
    float* workspace) {
    const int64_t width = plan.sizes.width, key_heads = plan.sizes.key_heads, query_heads = plan.sizes.query_heads;
    const int64_t group = query_heads / key_heads, padded = round_up(width, kLanes);
    const bool half = call.in.bfloat16;
    const Steps<const void> q{call.in.q, half, query_heads, width}, k{call.in.k, half, key_heads, width},
        v{call.in.v, half, key_heads, width};
    float* turn = workspace;
    float* sums = turn + padded;
    float* query = sums + padded;
    float* own_keys = query + padded;
    float* own_values = own_keys + kTurn * padded;
    float* scores = own_values + kTurn * padded;
    const float factor = call.in.scale * 1.44269504088896341f;
    for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h)
        for (int64_t i = slab.first; i < slab.first + slab.count; ++i) {
            const int64_t row = plan.row(run, i);
            read_row(q, row, h, query);
            rotate_row(plan, run, i, false, query, turn);
            for (int64_t d = 0; d < width; ++d) sums[d] = 0.0f;
            float most = call.in.sinks == nullptr ? -1e30f : call.in.sinks[h] / call.in.scale;
            float denominator = call.in.sinks == nullptr ? 0.0f : 1.0f;
            const int64_t end = run.carried + i + 1;
            for (int64_t first = larger(0, end - plan.sizes.window); first < end; first += kTurn) {
                const int64_t count = smaller(kTurn, end - first);
                const float* values[kTurn];
                float before = most;
                for (int64_t s = 0; s < count; ++s) {
                    const int64_t j = first + s;
                    const float* key = own_keys + s * padded;
                    if (j < run.carried) {
                        const int64_t slot = slot_row(plan, run, run.start - run.carried + j);
                        const int64_t at = (slot * key_heads + key_head) * width;
                        key = call.in.ring_keys + at;
                        values[s] = call.in.ring_values + at;
                    } else {
                        const int64_t own = plan.row(run, j - run.carried);
                        read_row(k, own, key_head, own_keys + s * padded);
                        rotate_row(plan, run, j - run.carried, false, own_keys + s * padded, turn);
                        read_row(v, own, key_head, own_values + s * padded);
                        values[s] = own_values + s * padded;
                    }
                    scores[s] = dot_row(width, query, key);
                    most = scores[s] > most ? scores[s] : most;
                }
                for (int64_t s = count; s < kTurn; ++s) scores[s] = kUnseen;
                Vec sum = {};
                for (int64_t s = 0; s < kTurn; s += kLanes) {
                    const Vec weight = power_of_two((load(scores + s) - most) * factor);
                    store(scores + s, weight);
                    sum += weight;
                }
                const float keep = std::exp2((before - most) * factor);
                denominator = denominator * keep + reduce_add(sum);
                for (int64_t d = 0; d < width; ++d) sums[d] *= keep;
                add_weighted(count, scores, values, width, sums);
            }
            for (int64_t d = 0; d < width; ++d) sums[d] /= denominator;
            write_row({call.o, half, query_heads, width}, row, h, sums);
            call.lse[row * query_heads + h] = most * call.in.scale + std::log(denominator);
        }
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

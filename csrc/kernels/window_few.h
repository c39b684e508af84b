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

// Own rotated keys and values, and for a head its queries, sums and scratch.
inline int64_t few_workspace(const WindowPlan& plan) {
    return (4 * kFew + 1) * plan.sizes.width;
}

SSMN_INLINE float dot_row(int64_t n, const float* x, const float* y) {
    Vec lanes = {};
    float tail = 0.0f;
    int64_t d = 0;
    for (; d + kLanes <= n; d += kLanes) lanes += load(x + d) * load(y + d);
    for (; d < n; ++d) tail += x[d] * y[d];
    return reduce_add(lanes) + tail;
}

inline void attend_few(
    const WindowPlan& plan,
    const WindowForward& call,
    const WindowRun& run,
    const WindowSlab& slab,
    int64_t key_head,
    float* workspace) {
    const int64_t width = plan.sizes.width, key_heads = plan.sizes.key_heads, query_heads = plan.sizes.query_heads;
    const int64_t group = query_heads / key_heads, slots = plan.sizes.window - 1;
    const bool half = call.in.bfloat16;
    const Steps<const void> q{call.in.q, half, query_heads, width}, k{call.in.k, half, key_heads, width},
        v{call.in.v, half, key_heads, width};
    float* turn = workspace;
    float* sums = turn + width;
    float* query = sums + width;
    float* own_key = query + width;
    float* own_value = own_key + width;
    for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h)
        for (int64_t i = slab.first; i < slab.first + slab.count; ++i) {
            const int64_t row = plan.row(run, i);
            read_row(q, row, h, query);
            rotate_row(plan, run, i, false, query, turn);
            for (int64_t d = 0; d < width; ++d) sums[d] = 0.0f;
            float most = call.in.sinks == nullptr ? -1e30f : call.in.sinks[h];
            float denominator = call.in.sinks == nullptr ? 0.0f : 1.0f;
            const int64_t last = run.carried + i;
            for (int64_t j = larger(0, last - slots); j <= last; ++j) {
                const float *key = own_key, *value = own_value;
                if (j < run.carried) {
                    const int64_t at =
                        (slot_row(plan, run, run.start - run.carried + j) * key_heads + key_head) * width;
                    key = call.in.ring_keys + at;
                    value = call.in.ring_values + at;
                } else {
                    read_row(k, plan.row(run, j - run.carried), key_head, own_key);
                    rotate_row(plan, run, j - run.carried, false, own_key, turn);
                    read_row(v, plan.row(run, j - run.carried), key_head, own_value);
                }
                const float score = dot_row(width, query, key) * call.in.scale;
                if (score > most) {
                    const float keep = std::exp(most - score);
                    denominator *= keep;
                    for (int64_t d = 0; d < width; ++d) sums[d] *= keep;
                    most = score;
                }
                const float weight = std::exp(score - most);
                denominator += weight;
                for (int64_t d = 0; d < width; ++d) sums[d] += weight * value[d];
            }
            for (int64_t d = 0; d < width; ++d) sums[d] /= denominator;
            write_row({call.o, half, query_heads, width}, row, h, sums);
            call.lse[row * query_heads + h] = most + std::log(denominator);
        }
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

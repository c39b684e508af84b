#include "window.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "path.h"
#include "window_few.h"
#include "window_rows.h"
#include "window_tile.h"

// A task is a slab of queries of all the heads that share a key head. It walks along the keys that any of them sees:
// a block of keys and values is packed once, and then meets every block of queries that sees some of it. The softmax is
// a running maximum and a running denominator, so no row of scores is ever stored whole. Scores stand transposed, a row
// per key: the maximum and the sum over the keys are then sums of vectors, and only the queries need transposing.

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr float kLog2OfE = 1.44269504088896341f;
constexpr float kLowest = -1e30f;  // a first maximum that stays finite when subtracted from kUnseen

// What a slab keeps for kBlock queries of one head.
struct QueryBlock {
    float* columns;      // [units, kBlock] packed
    float* sums;         // [kBlock, padded]
    float* most;         // [kBlock] largest score
    float* denominator;  // [kBlock]
};

template <typename Unit>
struct Forward {
    const WindowPlan& plan;
    const WindowForward& call;
    const Packing<Unit> packing;

    Forward(const WindowPlan& plan, const WindowForward& call) : plan(plan), call(call), packing(plan.sizes.width) {}

    int64_t group() const { return plan.sizes.query_heads / plan.sizes.key_heads; }
    int64_t blocks() const { return plan.slab_size / kBlock; }
    int64_t block_floats() const { return packing.units * kBlock + packing.padded * kBlock + 2 * kBlock; }
    // Scores, weights, keys, values and scratch.
    int64_t workspace() const {
        const int64_t shared = 2 * kBlock * kBlock + packing.along() + packing.across() + packing.scratch();
        return larger(shared + group() * blocks() * block_floats(), few_workspace(plan));
    }

    Steps<const void> steps(const void* data, int64_t heads) const {
        return {data, call.in.bfloat16, heads, plan.sizes.width};
    }

    QueryBlock block(float* blocks_at, int64_t number) const {
        float* at = blocks_at + number * block_floats();
        float* sums = at + packing.units * kBlock;
        float* most = sums + packing.padded * kBlock;
        return {at, sums, most, most + kBlock};
    }

    void begin(
        const WindowRun& run, int64_t head, int64_t first, int64_t count, const QueryBlock& block, float* scratch)
        const {
        float* along = block.sums;  // not in use yet
        read_queries(
            plan, run, steps(call.in.q, plan.sizes.query_heads), true, packing, head, first, count, scratch,
            scratch + kBlock * packing.padded);
        pack_columns(packing, scratch, along, block.columns);
        for (int64_t i = 0; i < kBlock * packing.padded; ++i) block.sums[i] = 0.0f;
        for (int64_t i = 0; i < kBlock; ++i) {
            block.most[i] = call.in.sinks == nullptr ? kLowest : call.in.sinks[head] / call.in.scale;
            block.denominator[i] = call.in.sinks == nullptr ? 0.0f : 1.0f;
        }
    }

    // Scores of a block become weights, packed along the keys; maximum and denominator move on. Sums are rescaled where
    // the maximum grew.
    void soften(const Band& band, float* scores, float* weights, const QueryBlock& block) const {
        const float factor = call.in.scale * kLog2OfE;
        for (int64_t l = 0; l < band.queries; l += kTileColumns) {
            const Range seen = band.keys_of(l, l + kTileColumns);
            if (seen.empty()) continue;
            const int64_t from = round_down(seen.from, kTileRows), to = round_up(seen.to, kTileRows);
            for (int64_t m = l; m < l + kTileColumns; m += kLanes) {
                const Vec before = load(block.most + m);
                Vec most = before;
                for (int64_t s = from; s < to; ++s) most = maximum(load(scores + s * kBlock + m), most);
                const Vec shift = most * factor;
                const Vec keep = power_of_two(before * factor - shift);
                Vec sum = {};
                for (int64_t s = from; s < to; s += 2) {
                    const Vec one = power_of_two(load(scores + s * kBlock + m) * factor - shift);
                    const Vec two = power_of_two(load(scores + (s + 1) * kBlock + m) * factor - shift);
                    sum += one + two;
                    put(weights, s, m, one, two);
                }
                store(block.most + m, most);
                store(block.denominator + m, load(block.denominator + m) * keep + sum);
                float factors[kLanes];
                store(factors, keep);
                for (int64_t i = 0; i < kLanes; ++i) {
                    if (factors[i] == 1.0f) continue;
                    float* line = block.sums + (m + i) * packing.padded;
                    for (int64_t d = 0; d < packing.padded; d += kLanes) store(line + d, load(line + d) * factors[i]);
                }
            }
        }
    }

    static SSMN_INLINE void put(float* weights, int64_t s, int64_t m, Vec one, Vec two) {
        if constexpr (Unit::kNumbers == 1) {
            store(weights + s * kBlock + m, one);
            store(weights + (s + 1) * kBlock + m, two);
        } else {
#if defined(SSMN_BF16_DOT)
            store(weights + s / 2 * kBlock + m, pair(one, two));
#endif
        }
    }

    void add_values(const Band& band, const float* weights, const float* values, const QueryBlock& block) const {
        for (int64_t l = 0; l < band.queries; l += kTileRows) {
            const Range seen = band.keys_of(l, l + kTileRows);
            if (seen.empty()) continue;
            const int64_t from = seen.from / 2 * 2, depth = (round_up(seen.to, 2) - from) / Unit::kNumbers;
            const int64_t first = from / Unit::kNumbers;
            add_rows<Unit>(
                packing.padded, depth, weights + first * kBlock + l, 1, kBlock, values + first * packing.padded,
                packing.padded, block.sums + l * packing.padded, packing.padded);
        }
    }

    void end(const WindowRun& run, int64_t head, int64_t first, int64_t count, const QueryBlock& block) const {
        const Steps<void> o{call.o, call.in.bfloat16, plan.sizes.query_heads, plan.sizes.width};
        for (int64_t i = 0; i < count; ++i) {
            float* line = block.sums + i * packing.padded;
            const float inverse = 1.0f / block.denominator[i];
            for (int64_t d = 0; d < packing.padded; d += kLanes) store(line + d, load(line + d) * inverse);
            const int64_t row = plan.row(run, first + i);
            write_row(o, row, head, line);
            call.lse[row * plan.sizes.query_heads + head] =
                block.most[i] * call.in.scale + std::log(block.denominator[i]);
        }
    }

    void operator()(int64_t task, float* workspace) const {
        const WindowSlab& slab = plan.slabs[task / plan.sizes.key_heads];
        const WindowRun& run = plan.runs[slab.run];
        const int64_t key_head = task % plan.sizes.key_heads;
        if (slab.count <= kFew) return attend_few(plan, call, run, slab, key_head, workspace);
        const int64_t window = plan.sizes.window, count = (slab.count + kBlock - 1) / kBlock;
        float* scores = workspace;
        float* weights = Unit::kNumbers == 1 ? scores : scores + kBlock * kBlock;
        float* keys = scores + 2 * kBlock * kBlock;
        float* values = keys + packing.along();
        float* scratch = values + packing.across();
        float* blocks_at = scratch + packing.scratch();
        const int64_t first_head = key_head * group();
        const auto size = [&](int64_t b) { return smaller(kBlock, slab.count - b * kBlock); };
        for (int64_t h = 0; h < group(); ++h)
            for (int64_t b = 0; b < count; ++b)
                begin(run, first_head + h, slab.first + b * kBlock, size(b), block(blocks_at, h * count + b), scratch);

        const Keys k{steps(call.in.k, plan.sizes.key_heads), call.in.ring_keys, true};
        const Keys v{steps(call.in.v, plan.sizes.key_heads), call.in.ring_values, false};
        const int64_t last = run.carried + slab.first + slab.count;
        for (int64_t key = larger(0, run.carried + slab.first - window + 1); key < last; key += kBlock) {
            const int64_t key_count = smaller(kBlock, last - key);
            float* turn = scratch + kBlock * packing.padded;
            read_keys(plan, run, k, packing, key_head, key, key_count, scratch, turn);
            pack_along(packing, round_up(key_count, kTileRows), scratch, keys);
            read_keys(plan, run, v, packing, key_head, key, key_count, scratch, turn);
            pack_across(packing, round_up(key_count, kTileRows), scratch, values);
            for (int64_t b = 0; b < count; ++b) {
                const Band band{key - run.carried - slab.first - b * kBlock, window, size(b), key_count};
                if (band.queries_of(0, key_count).empty()) continue;
                for (int64_t h = 0; h < group(); ++h) {
                    const QueryBlock queries = block(blocks_at, h * count + b);
                    multiply_seen<Unit, true>(band, packing.units, keys, packing.units, queries.columns, scores);
                    soften(band, scores, weights, queries);
                    add_values(band, weights, values, queries);
                }
            }
        }
        for (int64_t h = 0; h < group(); ++h)
            for (int64_t b = 0; b < count; ++b)
                end(run, first_head + h, slab.first + b * kBlock, size(b), block(blocks_at, h * count + b));
    }
};

template <typename Unit>
int32_t attend(const WindowPlan& plan, const WindowForward& call) {
    const Forward<Unit> forward(plan, call);
    return parallel_for(
        plan.slab_count * plan.sizes.key_heads, call.threads, 2.0 * plan.multiplications, forward.workspace(), forward);
}

constexpr int64_t kRows = 64;  // steps, or slots, of a task that only copies

// Closed steps put out nothing.
int32_t close_steps(const WindowPlan& plan, const WindowForward& call) {
    if (plan.mask == nullptr) return SSMN_OK;
    const int64_t total = plan.sizes.rows * plan.sizes.steps, heads = plan.sizes.query_heads;
    const Steps<void> o{call.o, call.in.bfloat16, heads, plan.sizes.width};
    return parallel_for(
        (total + kRows - 1) / kRows, call.threads, 1.0 * total * heads * plan.sizes.width, 0,
        [&](int64_t task, float*) {
            for (int64_t row = task * kRows; row < smaller(total, (task + 1) * kRows); ++row) {
                if (plan.mask[row]) continue;
                for (int64_t head = 0; head < heads; ++head) {
                    clear_row(o, row, head);
                    call.lse[row * heads + head] = kUnseen;
                }
            }
        });
}

// The ring after the last step: a slot holds the last position that falls on it, if there was one.
int32_t fill_ring(const WindowPlan& plan, const WindowForward& call) {
    const int64_t slots = plan.sizes.window - 1, heads = plan.sizes.key_heads, width = plan.sizes.width;
    if (call.final_keys == nullptr || slots == 0) return SSMN_OK;
    const int64_t pieces = (slots + kRows - 1) / kRows;
    const Steps<const void> k{call.in.k, call.in.bfloat16, heads, width}, v{call.in.v, call.in.bfloat16, heads, width};
    return parallel_for(
        plan.sizes.streams * pieces, call.threads, 1.0 * plan.sizes.streams * slots * heads * width, width,
        [&](int64_t task, float* turn) {
            const int64_t stream = task / pieces, from = task % pieces * kRows;
            const WindowRun& run = plan.runs[plan.final_run[stream]];
            const int64_t last = run.start + run.count - 1;
            for (int64_t slot = from; slot < smaller(slots, from + kRows); ++slot) {
                const int64_t position = last - ((last - slot) % slots + slots) % slots;
                const int64_t at = (stream * slots + slot) * heads * width;
                const size_t bytes = sizeof(float) * heads * width;
                if (position < 0) {
                    std::memset(call.final_keys + at, 0, bytes);
                    std::memset(call.final_values + at, 0, bytes);
                } else if (position < run.start) {
                    std::memcpy(call.final_keys + at, call.in.ring_keys + at, bytes);
                    std::memcpy(call.final_values + at, call.in.ring_values + at, bytes);
                } else {
                    const int64_t i = position - run.start, row = plan.row(run, i);
                    for (int64_t head = 0; head < heads; ++head) {
                        read_row(k, row, head, call.final_keys + at + head * width);
                        rotate_row(plan, run, i, false, call.final_keys + at + head * width, turn);
                        read_row(v, row, head, call.final_values + at + head * width);
                    }
                }
            }
        });
}

}  // namespace

int32_t window_forward(const WindowPlan& plan, const WindowForward& call) {
    int32_t status = close_steps(plan, call);
    if (status == SSMN_OK) status = fill_ring(plan, call);
    if (status != SSMN_OK) return status;
#if defined(SSMN_BF16_DOT)
    if (call.in.bfloat16) return attend<Pairs>(plan, call);
#endif
    return attend<Floats>(plan, call);
}

}  // namespace SSMN_PATH
}  // namespace ssmn

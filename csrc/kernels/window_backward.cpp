#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "path.h"
#include "window.h"
#include "window_rows.h"
#include "window_tile.h"

// As in the forward pass a task is a slab of queries of the heads that share a key head, and walks along their keys.
// The scores are computed again and the weights taken from the stored log-sum-exp. The slab owns the gradients of its
// queries. Those of its keys it shares with the slabs whose queries see them too, so the slabs of a run take turns:
// slab n works in turn n mod `turns`, enough turns for two slabs of the same one to share no key. The first turn in
// which a key is seen stores its gradient and later ones add to it: an order that depends on nothing but the sizes.

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr float kLog2OfE = 1.44269504088896341f;
constexpr float kEverything = 1e30f;  // log-sum-exp of a query that does not exist: all its weights are 0

// What a slab keeps for kBlock queries of one head.
struct QueryBlock {
    float *query_columns, *d_o_columns;  // [units, kBlock] packed: where the sum is over d
    float *query_rows, *d_o_rows;        // [kBlock, padded] packed: where the sum is over the queries
    float* d_query;                      // [kBlock, padded]
    float* lse;                          // [kBlock] in powers of two
    float* through;                      // [kBlock] d_o . o
};

template <typename Unit>
struct Backward {
    const WindowPlan& plan;
    const WindowBackward& call;
    const Packing<Unit> packing;
    const int64_t turns;

    Backward(const WindowPlan& plan, const WindowBackward& call)
        : plan(plan), call(call), packing(plan.sizes.width), turns(count_turns(plan)) {}

    // A slab, and as many as its window reaches back over; or as many as a run has.
    static int64_t count_turns(const WindowPlan& plan) {
        int64_t slabs = 1;
        for (int64_t i = 0; i < plan.slab_count; ++i) slabs = larger(slabs, plan.slabs[i].first / plan.slab_size + 1);
        return smaller(slabs, (plan.sizes.window - 1 + plan.slab_size - 1) / plan.slab_size + 1);
    }

    int64_t group() const { return plan.sizes.query_heads / plan.sizes.key_heads; }
    int64_t blocks() const { return plan.slab_size / kBlock; }
    int64_t block_floats() const {
        return 2 * kBlock * packing.units + 2 * packing.across() + kBlock * packing.padded + 2 * kBlock;
    }
    // Weights and d_scores in two packings each; keys in two and values; the gradients of both; scratch.
    int64_t workspace() const {
        return 4 * kBlock * kBlock + 2 * packing.along() + packing.across() + 2 * kBlock * packing.padded +
               packing.scratch() + group() * blocks() * block_floats();
    }

    Steps<const void> steps(const void* data, int64_t heads) const {
        return {data, call.in.bfloat16, heads, plan.sizes.width};
    }
    Steps<void> gradients(void* data, int64_t heads) const { return {data, call.in.bfloat16, heads, plan.sizes.width}; }

    QueryBlock block(float* blocks_at, int64_t number) const {
        QueryBlock block;
        block.query_columns = blocks_at + number * block_floats();
        block.d_o_columns = block.query_columns + kBlock * packing.units;
        block.query_rows = block.d_o_columns + kBlock * packing.units;
        block.d_o_rows = block.query_rows + packing.across();
        block.d_query = block.d_o_rows + packing.across();
        block.lse = block.d_query + kBlock * packing.padded;
        block.through = block.lse + kBlock;
        return block;
    }

    // Returns the part of the sink's gradient.
    double begin(
        const WindowRun& run, int64_t head, int64_t first, int64_t count, const QueryBlock& block, float* scratch)
        const {
        const int64_t heads = plan.sizes.query_heads, padded = packing.padded;
        float* turn = scratch + kBlock * padded;
        float* along = block.d_query;  // not in use yet
        const Steps<const void> o = steps(call.o, heads), d_o = steps(call.d_o, heads);
        read_queries(plan, run, steps(call.in.q, heads), true, packing, head, first, count, scratch, turn);
        pack_columns(packing, scratch, along, block.query_columns);
        pack_across(packing, kBlock, scratch, block.query_rows);
        read_queries(plan, run, d_o, false, packing, head, first, count, scratch, turn);
        pack_columns(packing, scratch, along, block.d_o_columns);
        pack_across(packing, kBlock, scratch, block.d_o_rows);
        double d_sink = 0.0;
        for (int64_t i = 0; i < kBlock; ++i) {
            block.lse[i] = kEverything;
            block.through[i] = 0.0f;
            if (i >= count) continue;
            const int64_t row = plan.row(run, first + i);
            const float lse = call.lse[row * heads + head];
            read_row(o, row, head, turn);
            float through = 0.0f;
            for (int64_t d = 0; d < packing.width; ++d) through += scratch[i * padded + d] * turn[d];
            block.lse[i] = lse * kLog2OfE;
            block.through[i] = through;
            if (call.in.sinks != nullptr) d_sink -= static_cast<double>(std::exp(call.in.sinks[head] - lse)) * through;
        }
        for (int64_t i = 0; i < kBlock * padded; ++i) block.d_query[i] = 0.0f;
        return d_sink;
    }

    // Scores become weights, and the gradients of the weights those of the scores; both packed along the queries, and
    // the latter along the keys too (one array if a unit is a number).
    struct Scores {
        float *weights, *d_scores;  // in: [kBlock, kBlock] numbers, a row per key
        float *weights_along, *d_scores_along, *d_scores_across;
    };

    void derive(const Band& band, const Scores& scores, const QueryBlock& block) const {
        const float factor = call.in.scale * kLog2OfE;
        for (int64_t l = 0; l < band.queries; l += kTileColumns) {
            const Range seen = band.keys_of(l, l + kTileColumns);
            if (seen.empty()) continue;
            const int64_t from = round_down(seen.from, kTileRows), to = round_up(seen.to, kTileRows);
            for (int64_t m = l; m < l + kTileColumns; m += kLanes) {
                const Vec lse = load(block.lse + m), through = load(block.through + m);
                for (int64_t s = from; s < to; s += 2) {
                    Vec weight[2], d_score[2];
                    for (int64_t i = 0; i < 2; ++i) {
                        const int64_t at = (s + i) * kBlock + m;
                        weight[i] = power_of_two(load(scores.weights + at) * factor - lse);
                        d_score[i] = weight[i] * (load(scores.d_scores + at) - through);
                    }
                    put(scores, s, m, weight, d_score);
                }
            }
        }
    }

    static SSMN_INLINE void put(const Scores& scores, int64_t s, int64_t m, const Vec* weight, const Vec* d_score) {
        if constexpr (Unit::kNumbers == 1) {
            for (int64_t i = 0; i < 2; ++i) {
                store(scores.weights + (s + i) * kBlock + m, weight[i]);
                store(scores.d_scores + (s + i) * kBlock + m, d_score[i]);
            }
        } else {
#if defined(SSMN_BF16_DOT)
            for (int64_t i = 0; i < 2; ++i) {
                const int64_t at = ((s + i) * kBlock + m) / 2;
                const HalfBits weights = to_bfloat16(weight[i]), d_scores = to_bfloat16(d_score[i]);
                std::memcpy(scores.weights_along + at, &weights, sizeof weights);
                std::memcpy(scores.d_scores_along + at, &d_scores, sizeof d_scores);
            }
            store(scores.d_scores_across + s / 2 * kBlock + m, pair(d_score[0], d_score[1]));
#endif
        }
    }

    // d_keys and d_values [kBlock, padded] += the transposes of weights and d_scores times d_o and the queries.
    void add_to_keys(
        const Band& band, const Scores& scores, const QueryBlock& block, float* d_keys, float* d_values) const {
        const int64_t row = kBlock / Unit::kNumbers, padded = packing.padded;
        for (int64_t s = 0; s < band.keys; s += kTileRows) {
            const Range seen = band.queries_of(s, s + kTileRows);
            if (seen.empty()) continue;
            const int64_t first = seen.from / Unit::kNumbers;
            const int64_t depth = (round_up(seen.to, 2) - first * Unit::kNumbers) / Unit::kNumbers;
            add_rows<Unit>(
                padded, depth, scores.weights_along + s * row + first, row, 1, block.d_o_rows + first * padded, padded,
                d_values + s * padded, padded);
            add_rows<Unit>(
                padded, depth, scores.d_scores_along + s * row + first, row, 1, block.query_rows + first * padded,
                padded, d_keys + s * padded, padded);
        }
    }

    void add_to_queries(const Band& band, const Scores& scores, const float* keys, const QueryBlock& block) const {
        for (int64_t l = 0; l < band.queries; l += kTileRows) {
            const Range seen = band.keys_of(l, l + kTileRows);
            if (seen.empty()) continue;
            const int64_t first = seen.from / Unit::kNumbers;
            const int64_t depth = (round_up(seen.to, 2) - first * Unit::kNumbers) / Unit::kNumbers;
            add_rows<Unit>(
                packing.padded, depth, scores.d_scores_across + first * kBlock + l, 1, kBlock,
                keys + first * packing.padded, packing.padded, block.d_query + l * packing.padded, packing.padded);
        }
    }

    void end(
        const WindowRun& run, int64_t head, int64_t first, int64_t count, const QueryBlock& block, float* turn) const {
        for (int64_t i = 0; i < count; ++i) {
            float* line = block.d_query + i * packing.padded;
            for (int64_t d = 0; d < packing.width; ++d) line[d] *= call.in.scale;
            rotate_row(plan, run, first + i, true, line, turn);
            write_row(gradients(call.d_q, plan.sizes.query_heads), plan.row(run, first + i), head, line);
        }
    }

    // Whether a slab of an earlier turn than `slab` has stored the gradient of a key.
    bool seen_before(const WindowRun& run, int64_t slab, int64_t key) const {
        const int64_t own = larger(0, key - run.carried);
        const int64_t newest = smaller(run.count - 1, key - run.carried + plan.sizes.window - 1) / plan.slab_size;
        for (int64_t other = own / plan.slab_size; other <= newest; ++other)
            if (other % turns < slab % turns) return true;
        return false;
    }

    void write_keys(
        const WindowSlab& slab,
        const WindowRun& run,
        int64_t key_head,
        int64_t first,
        int64_t count,
        float* d_keys,
        float* d_values,
        float* turn) const {
        const int64_t heads = plan.sizes.key_heads, width = packing.width, number = slab.first / plan.slab_size;
        const int64_t slots = plan.sizes.window - 1;
        const bool is_final = plan.final_run[run.stream] == slab.run;
        const Steps<void> d_k = gradients(call.d_k, heads), d_v = gradients(call.d_v, heads);
        for (int64_t s = 0; s < count; ++s) {
            float* key = d_keys + s * packing.padded;
            float* value = d_values + s * packing.padded;
            for (int64_t d = 0; d < width; ++d) key[d] *= call.in.scale;
            if (first + s < run.carried) {
                if (call.d_ring_keys == nullptr) continue;
                const int64_t slot = slot_row(plan, run, run.start - run.carried + first + s);
                const int64_t at = (slot * heads + key_head) * width;
                for (int64_t d = 0; d < width; ++d) call.d_ring_keys[at + d] += key[d];
                for (int64_t d = 0; d < width; ++d) call.d_ring_values[at + d] += value[d];
                continue;
            }
            const int64_t i = first + s - run.carried, row = plan.row(run, i);
            const bool kept = is_final && i >= run.count - slots && i / plan.slab_size == number;
            if (kept) {
                const int64_t at = (slot_row(plan, run, run.start + i) * heads + key_head) * width;
                if (call.d_final_keys != nullptr)
                    for (int64_t d = 0; d < width; ++d) key[d] += call.d_final_keys[at + d];
                if (call.d_final_values != nullptr)
                    for (int64_t d = 0; d < width; ++d) value[d] += call.d_final_values[at + d];
            }
            rotate_row(plan, run, i, true, key, turn);
            if (seen_before(run, number, first + s)) {
                read_row({call.d_k, d_k.bfloat16, heads, width}, row, key_head, turn);
                for (int64_t d = 0; d < width; ++d) key[d] += turn[d];
                read_row({call.d_v, d_v.bfloat16, heads, width}, row, key_head, turn);
                for (int64_t d = 0; d < width; ++d) value[d] += turn[d];
            }
            write_row(d_k, row, key_head, key);
            write_row(d_v, row, key_head, value);
        }
    }

    void run_slab(int64_t slab_number, int64_t key_head, float* workspace) const {
        const WindowSlab& slab = plan.slabs[slab_number];
        const WindowRun& run = plan.runs[slab.run];
        const int64_t window = plan.sizes.window, count = (slab.count + kBlock - 1) / kBlock;
        const int64_t padded = packing.padded, first_head = key_head * group();
        Scores scores;
        scores.weights = workspace;
        scores.d_scores = scores.weights + kBlock * kBlock;
        constexpr bool paired = Unit::kNumbers > 1;
        scores.weights_along = paired ? scores.d_scores + kBlock * kBlock : scores.weights;
        scores.d_scores_along = paired ? scores.weights_along + kBlock * kBlock / 2 : scores.d_scores;
        scores.d_scores_across = paired ? scores.d_scores_along + kBlock * kBlock / 2 : scores.d_scores;
        float* keys = workspace + 4 * kBlock * kBlock;
        float* values = keys + packing.along();
        float* key_rows = values + packing.along();
        float* d_keys = key_rows + packing.across();
        float* d_values = d_keys + kBlock * padded;
        float* scratch = d_values + kBlock * padded;
        float* turn = scratch + kBlock * padded;
        float* blocks_at = scratch + packing.scratch();
        const auto size = [&](int64_t b) { return smaller(kBlock, slab.count - b * kBlock); };
        for (int64_t h = 0; h < group(); ++h) {
            double d_sink = 0.0;
            for (int64_t b = 0; b < count; ++b)
                d_sink += begin(
                    run, first_head + h, slab.first + b * kBlock, size(b), block(blocks_at, h * count + b), scratch);
            if (call.d_sinks != nullptr) call.d_sinks[slab_number * plan.sizes.query_heads + first_head + h] = d_sink;
        }
        const Keys k{steps(call.in.k, plan.sizes.key_heads), call.in.ring_keys, true};
        const Keys v{steps(call.in.v, plan.sizes.key_heads), call.in.ring_values, false};
        const int64_t last = run.carried + slab.first + slab.count;
        for (int64_t key = larger(0, run.carried + slab.first - window + 1); key < last; key += kBlock) {
            const int64_t key_count = smaller(kBlock, last - key), key_rows_count = round_up(key_count, kTileRows);
            read_keys(plan, run, k, packing, key_head, key, key_count, scratch, turn);
            pack_along(packing, key_rows_count, scratch, keys);
            pack_across(packing, key_rows_count, scratch, key_rows);
            read_keys(plan, run, v, packing, key_head, key, key_count, scratch, turn);
            pack_along(packing, key_rows_count, scratch, values);
            for (int64_t i = 0; i < 2 * kBlock * padded; ++i) d_keys[i] = 0.0f;
            for (int64_t b = 0; b < count; ++b) {
                const Band band{key - run.carried - slab.first - b * kBlock, window, size(b), key_count};
                if (band.queries_of(0, key_count).empty()) continue;
                for (int64_t h = 0; h < group(); ++h) {
                    const QueryBlock queries = block(blocks_at, h * count + b);
                    multiply_seen<Unit, true>(
                        band, packing.units, keys, packing.units, queries.query_columns, scores.weights);
                    multiply_seen<Unit, false>(
                        band, packing.units, values, packing.units, queries.d_o_columns, scores.d_scores);
                    derive(band, scores, queries);
                    add_to_keys(band, scores, queries, d_keys, d_values);
                    add_to_queries(band, scores, key_rows, queries);
                }
            }
            write_keys(slab, run, key_head, key, key_count, d_keys, d_values, turn);
        }
        for (int64_t h = 0; h < group(); ++h)
            for (int64_t b = 0; b < count; ++b)
                end(run, first_head + h, slab.first + b * kBlock, size(b), block(blocks_at, h * count + b), turn);
    }
};

template <typename Unit>
int32_t differentiate(const WindowPlan& plan, const WindowBackward& call) {
    const Backward<Unit> backward(plan, call);
    const int64_t heads = plan.sizes.key_heads;
    const double each = 5.0 * plan.multiplications / static_cast<double>(backward.turns);
    for (int64_t turn = 0; turn < backward.turns; ++turn) {
        const int32_t status = parallel_for(
            plan.slab_count * heads, call.threads, each, backward.workspace(), [&](int64_t task, float* workspace) {
                const WindowSlab& slab = plan.slabs[task / heads];
                if (slab.first / plan.slab_size % backward.turns == turn)
                    backward.run_slab(task / heads, task % heads, workspace);
            });
        if (status != SSMN_OK) return status;
    }
    return SSMN_OK;
}

constexpr int64_t kRows = 64;  // steps, or slots, of a task that only fills

// Closed steps have no gradients.
int32_t close_steps(const WindowPlan& plan, const WindowBackward& call) {
    if (plan.mask == nullptr) return SSMN_OK;
    const int64_t total = plan.sizes.rows * plan.sizes.steps, width = plan.sizes.width;
    const bool half = call.in.bfloat16;
    const Steps<void> d_q{call.d_q, half, plan.sizes.query_heads, width},
        d_k{call.d_k, half, plan.sizes.key_heads, width}, d_v{call.d_v, half, plan.sizes.key_heads, width};
    return parallel_for(
        (total + kRows - 1) / kRows, call.threads, 2.0 * total * plan.sizes.query_heads * width, 0,
        [&](int64_t task, float*) {
            for (int64_t row = task * kRows; row < smaller(total, (task + 1) * kRows); ++row) {
                if (plan.mask[row]) continue;
                for (int64_t head = 0; head < d_q.heads; ++head) clear_row(d_q, row, head);
                for (int64_t head = 0; head < d_k.heads; ++head) clear_row(d_k, row, head);
                for (int64_t head = 0; head < d_v.heads; ++head) clear_row(d_v, row, head);
            }
        });
}

// A slot of the ring that no step has overwritten is handed on, and so is its gradient.
int32_t hand_on_ring(const WindowPlan& plan, const WindowBackward& call) {
    const int64_t slots = plan.sizes.window - 1, row = plan.sizes.key_heads * plan.sizes.width;
    if (call.d_ring_keys == nullptr || slots == 0) return SSMN_OK;
    const int64_t pieces = (slots + kRows - 1) / kRows;
    const size_t bytes = sizeof(float) * row;
    return parallel_for(
        plan.sizes.streams * pieces, call.threads, 1.0 * plan.sizes.streams * slots * row, 0,
        [&](int64_t task, float*) {
            const int64_t stream = task / pieces, from = task % pieces * kRows;
            const WindowRun& run = plan.runs[plan.final_run[stream]];
            const int64_t last = run.start + run.count - 1;
            for (int64_t slot = from; slot < smaller(slots, from + kRows); ++slot) {
                const int64_t position = last - ((last - slot) % slots + slots) % slots;
                const bool kept = position >= 0 && position < run.start;
                const int64_t at = (stream * slots + slot) * row;
                const auto hand_on = [&](const float* from_final, float* to) {
                    if (kept && from_final != nullptr) {
                        std::memcpy(to + at, from_final + at, bytes);
                    } else {
                        std::memset(to + at, 0, bytes);
                    }
                };
                hand_on(call.d_final_keys, call.d_ring_keys);
                hand_on(call.d_final_values, call.d_ring_values);
            }
        });
}

}  // namespace

int32_t window_backward(const WindowPlan& plan, const WindowBackward& call) {
    int32_t status = close_steps(plan, call);
    if (status == SSMN_OK) status = hand_on_ring(plan, call);
    if (status != SSMN_OK) return status;
#if defined(SSMN_BF16_DOT)
    if (call.in.bfloat16) return differentiate<Pairs>(plan, call);
#endif
    return differentiate<Floats>(plan, call);
}

}  // namespace SSMN_PATH
}  // namespace ssmn

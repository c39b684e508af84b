// The part of a chunk's work that all columns of the values share.
#ifndef SSMN_MEMORY_PREPARE_H
#define SSMN_MEMORY_PREPARE_H

#include "memory_pass.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Sums of log_keep, each as a float and what it lacks: after a strong decay a sum is large, and neighbouring steps
// still differ by little.
struct Sums {
    float high[kChunk + 16];
    float low[kChunk + 16];

    void set(int64_t i, double sum) {
        high[i] = static_cast<float>(sum);
        low[i] = static_cast<float>(sum - high[i]);
    }
    void copy(int64_t i, const Sums& from, int64_t j) {
        high[i] = from.high[j];
        low[i] = from.low[j];
    }
};

// exp(sum i of x - sums j, j + 1, .. of y)
SSMN_INLINE Vec ratio_vector(const Sums& x, int64_t i, const Sums& y, int64_t j) {
    const Vec difference = (x.high[i] - load(y.high + j)) + (x.low[i] - load(y.low + j));
    return exp_nonpositive(minimum(difference, Vec{}));
}

// ratio [n, kChunk]: exp(G_i - G_j) for the written steps j up to i, zeros after them. Rows are taken in blocks; to the
// left of a block the ratio is a product of what lies before the block's start and what comes after it.
SSMN_APART void fill_ratio(int64_t n, const int32_t* count, const Sums& steps, const Sums& written, float* ratio) {
    constexpr int64_t block = 16;
    const VecInt numbers = lane_numbers();
    for (int64_t first = 0; first < n; first += block) {
        const int64_t whole = first == 0 ? 0 : count[first - 1] / kLanes;
        Vec left[kChunk / kLanes];
        for (int64_t v = 0; v < whole; ++v) left[v] = ratio_vector(steps, first - 1, written, v * kLanes);
        float since[block + 16];
        if (first > 0) {
            for (int64_t i = 0; i < block; i += kLanes) {
                const Vec difference = (load(steps.high + first + i) - steps.high[first - 1]) +
                                       (load(steps.low + first + i) - steps.low[first - 1]);
                store(since + i, exp_nonpositive(minimum(difference, Vec{})));
            }
        }
        for (int64_t i = first; i < smaller(n, first + block); ++i) {
            float* line = ratio + i * kChunk;
            int64_t v = 0;
            for (; v < whole; ++v) store(line + v * kLanes, left[v] * since[i - first]);
            for (; v * kLanes < count[i]; ++v) {
                const VecInt seen = numbers + static_cast<int32_t>(v * kLanes) < count[i];
                store(line + v * kLanes, select(seen, ratio_vector(steps, i, written, v * kLanes), Vec{}));
            }
            for (; v < kChunk / kLanes; ++v) store(line + v * kLanes, Vec{});
        }
    }
}

// x = R o x in every row's first `width(i)` columns, in whole vectors, and zeros after them.
SSMN_APART void weigh_pairs(int64_t n, const int32_t* count, const float* ratio, float* x) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < kChunk; j += kLanes) {
            float* at = x + i * kChunk + j;
            store(at, j < count[i] ? load(at) * load(ratio + i * kChunk + j) : Vec{});
        }
}

// x_jl = factors_j R_jl x_jl for the written steps l before j, zeros elsewhere.
SSMN_APART void weigh_strict(int64_t m, const int32_t* position, const float* ratio, const float* factors, float* x) {
    const VecInt numbers = lane_numbers();
    for (int64_t i = 0; i < m; ++i) {
        const float* row = ratio + position[i] * kChunk;
        for (int64_t j = 0; j < kChunk; j += kLanes) {
            float* at = x + i * kChunk + j;
            if (j < i) {
                const VecInt before = numbers + static_cast<int32_t>(j) < static_cast<int32_t>(i);
                store(at, select(before, load(at) * load(row + j) * factors[i], Vec{}));
            } else {
                store(at, Vec{});
            }
        }
    }
}

// Replaces the diagonal blocks of N [m, kChunk] by the inverses of those of I - N, by substitution. The blocks are
// interleaved: each row waits for the one before it.
SSMN_APART void invert_blocks(int64_t m, float* n) {
    constexpr int64_t vectors = kSolveRows / kLanes > 0 ? kSolveRows / kLanes : 1;
    float inverse[kChunk * kSolveRows];
    for (int64_t i = 0; i < kSolveRows; ++i)
        for (int64_t first = 0; first + i < m; first += kSolveRows) {
            const float* row = n + (first + i) * kChunk + first;
            float unit[kSolveRows] = {};
            unit[i] = 1.0f;
            Vec sum[vectors];
            for (int64_t v = 0; v < vectors; ++v) sum[v] = load(unit + v * kLanes);
            for (int64_t j = 0; j < i; ++j)
                for (int64_t v = 0; v < vectors; ++v)
                    sum[v] += load(inverse + (first + j) * kSolveRows + v * kLanes) * row[j];
            for (int64_t v = 0; v < vectors; ++v) store(inverse + (first + i) * kSolveRows + v * kLanes, sum[v]);
        }
    for (int64_t i = 0; i < m; ++i)
        std::memcpy(n + i * kChunk + i / kSolveRows * kSolveRows, inverse + i * kSolveRows, sizeof(float) * kSolveRows);
}

// The gate and the decays of a run; returns how many of its steps are written.
SSMN_APART int64_t gate_run(
    const Pass& pass, const Window& window, Lane lane, const MemoryRun& run, int64_t at, Sums& steps, Sums& written) {
    const int64_t n = run.length();
    double sum = 0.0;
    int64_t m = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t scalar = pass.scalar(lane.row, run.first + i, lane.head);
        const bool open = pass.opens(lane.row, run.first + i, lane.head);
        if (open) sum += (pass.log_decay[scalar] > kForgotten ? pass.log_decay[scalar] : kForgotten);
        steps.set(i, sum);
        if (open) {
            window.position[at + m] = static_cast<int32_t>(i);
            window.write[at + m] = pass.eta == nullptr ? 1.0f : pass.eta[scalar];
            if (pass.erases) window.erase[at + m] = pass.erase[scalar];
            written.copy(m, steps, i);
            ++m;
        }
        window.count[at + i] = static_cast<int32_t>(m);
    }
    float values[kChunk + 16];
    for (int64_t i = 0; i < n; i += kLanes)
        store(values + i, exp_nonpositive(minimum(load(steps.high + i) + load(steps.low + i), Vec{})));
    std::memcpy(window.from_start + at, values, sizeof(float) * n);
    for (int64_t j = 0; j < m; j += kLanes) store(values + j, ratio_vector(steps, n - 1, written, j));
    std::memcpy(window.to_end + at, values, sizeof(float) * m);
    if (pass.erases)
        for (int64_t j = 0; j < m; ++j)
            window.minus_erase[at + j] = -window.erase[at + j] * window.from_start[at + window.position[at + j]];
    return m;
}

// What prepare_chunk works with.
struct PrepareSpare {
    float *keys, *products;

    static int64_t floats(const Pass& pass) { return pass.keys * kChunk + kChunk * kChunk; }
    PrepareSpare(const Pass& pass, Cursor& cursor)
        : keys(cursor.take<float>(pass.keys * kChunk)), products(cursor.take<float>(kChunk * kChunk)) {}
};

// Everything in `window` that does not depend on the values, for all runs of a chunk; `ratio` is where the runs leave R
// (by step).
template <bool Pairs>
inline void prepare_chunk(
    const Pass& pass,
    const Window& window,
    bool backward,
    Lane lane,
    int64_t chunk,
    float* ratio,
    PrepareSpare spare,
    Ahead* ahead) {
    const int64_t K = pass.key_width, stride = pass.key_stride, start = chunk * pass.chunk / kWindow * kWindow;
    Sums steps{}, written{};
    for (const MemoryRun* run = pass.plan->first(lane.row, chunk); run < pass.plan->last(lane.row, chunk); ++run) {
        const int64_t at = run->first - start, n = run->length();
        const int64_t m = gate_run(pass, window, lane, *run, at, steps, written);
        const int32_t* count = window.count + at;
        const int32_t* position = window.position + at;
        const int64_t offset = pass.scalar(lane.row, run->first, lane.head) * K;
        float* q = window.q + at * stride;
        float* k = window.k + at * stride;
        if (pass.reads()) pack(n, K, pass.q, offset, pass.heads * K, pass.half, nullptr, q, stride);
        pack(m, K, pass.k, offset, pass.heads * K, pass.half, m == n ? nullptr : position, k, stride);
        float* run_ratio = ratio + (run->first - chunk * pass.chunk) * kChunk;
        fill_ratio(n, count, steps, written, run_ratio);

        Matrix left{q, stride}, right{k, stride};
        const float* source = k;
        int64_t terms = K, columns = pass.keys, source_row = stride;
        if constexpr (Pairs) {
            float* q_rows = window.q_rows + at * pass.key_pair_stride;
            float* k_rows = window.k_rows + at * pass.key_pair_stride;
            if (pass.reads()) narrow_rows(n, pass.keys, q, stride, q_rows, pass.key_pair_stride);
            narrow_rows(m, pass.keys, k, stride, k_rows, pass.key_pair_stride);
            pair_rows(m, pass.keys, nullptr, k, stride, window.k_pairs + at * stride, stride);
            if (backward && pass.reads())
                pair_rows(n, pass.keys, nullptr, q, stride, window.q_pairs + at * stride, stride);
            left = {q_rows, pass.key_pair_stride};
            right = {k_rows, pass.key_pair_stride};
            source = k_rows;
            source_row = pass.key_pair_stride;
            terms = pass.key_pairs;
            columns = whole_vectors(terms);
        }
        transpose_block(m, columns, source, source_row, spare.keys, kChunk);
        if (pass.reads()) {
            float* pairs = window.pairs + at * kChunk;
            float* products = Pairs ? spare.products : pairs;
            multiply_part<Pairs>(
                n, [count](int64_t i, int64_t rows) { return count[i + rows - 1]; }, terms, left, spare.keys, kChunk,
                {products, kChunk, 0.0f, nullptr, ahead});
            weigh_pairs(n, count, run_ratio, products);
            if (Pairs && backward) pair_rows(n, kChunk, nullptr, products, kChunk, pairs, kChunk);
            if (Pairs && !backward) narrow_rows(n, kChunk, products, kChunk, pairs, kChunk / 2);
        }
        if (!pass.erases) continue;
        float* factor = window.factor + at * kChunk;
        multiply_part<Pairs>(
            m, [](int64_t i, int64_t rows) { return i + rows; }, terms, right, spare.keys, kChunk,
            {factor, kChunk, 0.0f, nullptr, ahead});
        float strength[kChunk];
        for (int64_t j = 0; j < m; ++j) strength[j] = -window.erase[at + j];
        weigh_strict(m, position, run_ratio, strength, factor);
        invert_blocks(m, factor);
    }
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

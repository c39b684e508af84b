// The fused memory, backward. The forward pass (memory_pass.cpp has its formulas) leaves one state per window of steps.
// From the last window to the first, four phases:
//
//     1  in parallel over chunks     R, R o Q K^T and the factor of I - N, once more
//     2  over columns, forward       U and every chunk's S_0, once more
//     3  over columns, backward      the gradients that pass from step to step: with P = R o Q K^T, dS of S_n and dU
//                                    of the updates themselves (if the call returned them),
//                                    (I - N)^T dB = P^T dO + dU + diag(exp(G_n - G)) K dS
//                                    dS_0 = exp(G_n) dS + Q^T diag(exp(G)) dO - K^T diag(e exp(G)) dB
//                                    dV = diag(w) dB, dw = rows of dB o V
//     4  in parallel over chunks     what sums over all columns, whole and in one order: with A = R o (dO U^T),
//                                    M = -R o (dB U^T) below the diagonal,
//                                    dQ   = A K + diag(exp(G)) dO S_0^T
//                                    dK+  = M K - diag(exp(G)) dB S_0^T               (to be scaled by e)
//                                    dK-  = A^T Q + M^T diag(e) K + diag(exp(G_n - G)) U dS^T
//                                    dK   = diag(e) dK+ + dK-
//
// G comes in through exp(G_i) beside q_i and e_i k_i, and through exp(-G_j) beside k_j, so its gradient needs no
// matrix: dG_i = q_i.dQ_i + e_i k_i.dK+_i - k_i.dK-_i, and of the last step also that of exp(G_n). de_i = k_i.dK+_i.

#include "memory_pass.h"
#include "memory_prepare.h"
#include "memory_write.h"
#include "path.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

struct Gradients {
    const float* states;
    const void *d_o, *d_u;
    const float* d_final_state;
    void *d_q, *d_k, *d_v;
    float *d_eta, *d_log_decay, *d_erase, *d_initial_state;
};

bool goes_on(const Pass& pass, const MemoryRun& run) {
    return run.end < 0 && run.last < pass.steps && (&run)[1].begin == kGoOn;
}

// Whether the state after a run has a gradient.
bool has_end_gradient(const Pass& pass, const Gradients& out, const MemoryRun& run) {
    return run.end >= 0 ? out.d_final_state != nullptr : goes_on(pass, run);
}

void copy_block(int64_t n, int64_t whole, const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < whole; j += kLanes) store(to + i * to_row + j, load(from + i * from_row + j));
}

void pack_output_gradient(const Pass& pass, const Window& window, Lane lane, int64_t chunk, const void* d_o) {
    if (!pass.reads()) return;
    const int64_t first = chunk * pass.chunk, n = smaller(pass.chunk, pass.steps - first), V = pass.value_width;
    pack(
        n, V, d_o, pass.scalar(lane.row, first, lane.head) * V, pass.heads * V, pass.half, nullptr,
        window.d_o + first % kWindow * pass.value_stride, pass.value_stride);
}

// Phase 2.
template <bool Pairs>
void replay(
    const Pass& pass,
    const Window& window,
    Lane lane,
    int64_t number,
    Columns columns,
    const Gradients& out,
    Cursor spare) {
    const int64_t first = number * pass.window_chunks, last = smaller(pass.chunks, first + pass.window_chunks);
    const int64_t whole = columns.whole(), size = pass.key_width * pass.value_stride;
    float* other = spare.take<float>(kChunk * whole);
    if (number > 0)
        load_state(pass, columns, out.states + pass.stored_state(lane.row, number, lane.head), window.state);
    for (const MemoryRun* run = pass.plan->first(lane.row, first); run < pass.plan->last(lane.row, last - 1); ++run) {
        const int64_t at = run->first - number * kWindow;
        start_run(pass, window, lane, *run, columns);
        if (run->begin == kGoOn)
            copy_block(
                pass.key_width, whole, window.state + columns.first, pass.value_stride,
                window.starts + (run->first / pass.chunk - first) * size + columns.first, pass.value_stride);
        float* u = window.u + at * pass.value_stride + columns.first;
        float* v = window.v + at * pass.value_stride + columns.first;
        update_run(pass, window, lane, *run, at, columns, u, pass.value_stride, v, other);
        Ahead next = pass.ahead(pass.v, pass.value_width, lane.row, lane.head, run->last, columns);
        if (goes_on(pass, *run))
            advance_run<Pairs>(pass, window, *run, at, columns, u, pass.value_stride, other, &next);
    }
}

void store_value_gradient(
    const Pass& pass,
    const Window& window,
    Lane lane,
    const MemoryRun& run,
    int64_t at,
    Columns columns,
    const float* d_u,
    float* line,
    void* d_v) {
    for (int64_t i = 0, j = 0; i < run.length(); ++i) {
        const int64_t offset = pass.scalar(lane.row, run.first + i, lane.head) * pass.value_width + columns.first;
        if (window.count[at + i] == j) {
            zero_row(columns.width, d_v, offset, pass.half);
        } else {
            scale_block(1, columns.whole(), window.write + at + j, d_u + j * pass.value_stride, 0, line, 0);
            unpack_row(columns.width, line, d_v, offset, pass.half);
            ++j;
        }
    }
}

// c [K, whole] from rows^T diag(factors) x, rows [n, K] (or pairs of them) and x [n, whole].
template <bool Pairs>
void add_outer(
    int64_t n,
    int64_t whole,
    int64_t key_width,
    const float* rows,
    int64_t row,
    const float* factors,
    const float* x,
    int64_t x_row,
    float* spare,
    Into c) {
    if (Pairs) {
        pair_rows(n, whole, factors, x, x_row, spare, whole);
    } else {
        scale_block(n, whole, factors, x, x_row, spare, whole);
    }
    multiply_all<Pairs>(key_width, whole, Pairs ? (n + 1) / 2 : n, Matrix{rows, row}.transposed(), spare, whole, c);
}

// Phase 3.
template <bool Pairs>
void carry_back(
    const Pass& pass,
    const Window& window,
    Lane lane,
    int64_t number,
    Columns columns,
    const Gradients& out,
    Cursor spare) {
    const int64_t first = number * pass.window_chunks, last = smaller(pass.chunks, first + pass.window_chunks);
    const int64_t whole = columns.whole(), K = pass.key_width, stride = pass.value_stride, size = K * stride;
    float* other = spare.take<float>(kChunk * whole);
    float* state_pairs = Pairs ? spare.take<float>(pass.key_pairs * whole) : nullptr;
    float* d_state = window.d_state + columns.first;
    const MemoryRun* const begin = pass.plan->first(lane.row, first);
    for (const MemoryRun* run = pass.plan->last(lane.row, last - 1) - 1; run >= begin; --run) {
        const int64_t at = run->first - number * kWindow, n = run->length(), m = window.count[at + n - 1];
        const bool from_end = has_end_gradient(pass, out, *run);
        if (from_end && run->end >= 0) {
            load_state(pass, columns, out.d_final_state + pass.stream_state(run->end, lane.head), window.d_state);
        } else if (from_end) {
            float* slot = window.d_ends + (run->first / pass.chunk - first) * size + columns.first;
            copy_block(K, whole, d_state, stride, slot, stride);
        }
        const float* d_o = window.d_o + at * stride + columns.first;
        float* d_u = window.d_u + at * stride + columns.first;
        const int32_t* position = window.position + at;
        const Matrix seen = Matrix{window.pairs + at * kChunk, kChunk}.transposed();
        Ahead output = pass.ahead(out.d_v, pass.value_width, lane.row, lane.head, run->first, columns);
        if (out.d_u != nullptr) {
            const int64_t offset = pass.scalar(lane.row, run->first, lane.head) * pass.value_width + columns.first;
            pack(m, columns.width, out.d_u, offset, pass.heads * pass.value_width, pass.half, position, d_u, stride);
        } else if (!pass.reads()) {
            zero_block(m, whole, d_u, stride);
        }
        const float given = out.d_u != nullptr ? 1.0f : 0.0f;
        const Into from_reads{d_u, stride, given, nullptr, &output},
            from_state{d_u, stride, 1.0f, window.to_end + at, &output};
        if constexpr (Pairs) {
            if (pass.reads()) {
                pair_rows(n, whole, nullptr, d_o, stride, other, whole);
                multiply<true>(
                    m, whole, [position, n](int64_t j, int64_t) { return Range{position[j] / 2, (n + 1) / 2}; }, seen,
                    other, whole, from_reads);
            }
            if (from_end) {
                pair_rows(K, whole, nullptr, d_state, stride, state_pairs, whole);
                const Matrix keys{window.k_rows + at * pass.key_pair_stride, pass.key_pair_stride};
                multiply_all<true>(m, whole, pass.key_pairs, keys, state_pairs, whole, from_state);
            }
        } else {
            if (pass.reads())
                multiply(
                    m, whole, [position, n](int64_t j, int64_t) { return Range{position[j], n}; }, seen, d_o, stride,
                    from_reads);
            const Matrix keys{window.k + at * pass.key_stride, pass.key_stride};
            if (from_end) multiply_all(m, whole, K, keys, d_state, stride, from_state);
        }
        if (pass.erases) solve_transposed(m, whole, window.factor + at * kChunk, d_u, stride, other);
        store_value_gradient(pass, window, lane, *run, at, columns, d_u, other, out.d_v);
        if (!pass.starts(*run)) continue;

        const float kept = from_end ? window.from_start[at + n - 1] : 0.0f;
        if (pass.reads()) {
            add_outer<Pairs>(
                n, whole, K, Pairs ? window.q_pairs + at * pass.key_stride : window.q + at * pass.key_stride,
                pass.key_stride, window.from_start + at, d_o, stride, other, {d_state, stride, kept});
        } else if (from_end) {
            for (int64_t i = 0; i < K; ++i)
                scale_block(1, whole, &kept, d_state + i * stride, 0, d_state + i * stride, 0);
        } else {
            zero_block(K, whole, d_state, stride);
        }
        if (pass.erases && m > 0)
            add_outer<Pairs>(
                m, whole, K, Pairs ? window.k_pairs + at * pass.key_stride : window.k + at * pass.key_stride,
                pass.key_stride, window.minus_erase + at, d_u, stride, other, {d_state, stride, 1.0f});
        if (run->begin >= 0)
            store_state(pass, columns, window.d_state, out.d_initial_state + pass.stream_state(run->begin, lane.head));
    }
}

// What one worker needs for phase 4.
struct Spare {
    float *transposed, *state, *d_queries, *d_left, *d_right, *d_pairs, *d_rows;
    float *d_o, *d_u, *u, *state_rows;  // in rows of pairs

    static int64_t place(Spare* spare, const Pass& pass, Cursor cursor) {
        spare->transposed = cursor.take<float>(pass.values * larger(pass.key_stride, kChunk));
        spare->state = cursor.take<float>(pass.key_width * pass.value_stride);
        for (float** rows : {&spare->d_queries, &spare->d_left, &spare->d_right})
            *rows = cursor.take<float>(kChunk * pass.key_stride);
        for (float** square : {&spare->d_pairs, &spare->d_rows}) *square = cursor.take<float>(kChunk * kChunk);
        if (pass.pairs()) {
            for (float** rows : {&spare->d_o, &spare->d_u, &spare->u})
                *rows = cursor.take<float>(kChunk * pass.value_pair_stride);
            spare->state_rows = cursor.take<float>(pass.key_width * pass.value_pair_stride);
        }
        return cursor.used;
    }
};

// The products of phase 4 that sum over the values. With pairs the left sides and what is transposed are narrowed
// first.
template <bool Pairs>
struct OverValues {
    const Pass& pass;
    const Spare& spare;

    Matrix left(int64_t n, const float* rows, float* narrowed) const {
        if (!Pairs) return {rows, pass.value_stride};
        narrow_rows(n, pass.values, rows, pass.value_stride, narrowed, pass.value_pair_stride);
        return {narrowed, pass.value_pair_stride};
    }
    int64_t terms() const { return Pairs ? pass.value_pairs : pass.value_width; }

    // spare.transposed = the transpose of a state [K, V]
    void transpose_state(const float* state) const {
        if (Pairs) {
            (void)left(pass.key_width, state, spare.state_rows);
            transpose(pass.key_width, {spare.state_rows, pass.value_pair_stride}, pass.key_stride);
        } else {
            transpose(pass.key_width, {state, pass.value_stride}, pass.key_stride);
        }
    }
    void transpose(int64_t n, Matrix rows, int64_t stride) const {
        transpose_block(n, whole_vectors(terms()), rows.data, rows.row, spare.transposed, stride);
    }
    // c [n, K] from rows [n, V] and a transposed state
    void multiply_state(int64_t n, Matrix rows, Into c) const {
        multiply_all<Pairs>(n, pass.keys, terms(), rows, spare.transposed, pass.key_stride, c);
    }
};

// The products of phase 4 with a matrix [n, kChunk] of pairs of steps, in `spare.d_pairs`; rows(i, tile) is the range
// of its columns that are not 0 in the rows [i, i + tile), columns(j, tile) that of its rows.
template <bool Pairs, typename Rows, typename Columns>
void multiply_pairs(
    int64_t n,
    int64_t m,
    const Pass& pass,
    const Spare& spare,
    const Rows& rows,
    const Columns& columns,
    const float* factors,
    const float* right,
    Into c,
    const float* left,
    Into c_transposed) {
    const auto halved = [](Range range) { return Pairs ? Range{range.first / 2, (range.last + 1) / 2} : range; };
    float* x = spare.d_pairs;
    Matrix straight{x, kChunk};
    if (Pairs) {
        narrow_rows(n, kChunk, x, kChunk, spare.d_rows, kChunk / 2);
        straight = {spare.d_rows, kChunk / 2};
    }
    multiply<Pairs>(
        n, pass.keys, [&](int64_t i, int64_t tile) { return halved(rows(i, tile)); }, straight, right, pass.key_stride,
        c);
    Matrix across{x, kChunk};
    if (Pairs) {
        pair_rows(n, kChunk, factors, x, kChunk, spare.d_rows, kChunk);
        across = {spare.d_rows, kChunk};
    } else if (factors != nullptr) {
        scale_block(n, kChunk, factors, x, kChunk, x, kChunk);
    }
    multiply<Pairs>(
        m, pass.keys, [&](int64_t j, int64_t tile) { return halved(columns(j, tile)); }, across.transposed(), left,
        pass.key_stride, c_transposed);
}

// Stores the gradients of a run's gate and keys; `d_sums` is the gradient of G, but for the keys' part.
void store_gate_gradients(
    const Pass& pass,
    const Window& window,
    Lane lane,
    const MemoryRun& run,
    int64_t at,
    const Spare& spare,
    double* d_sums,
    const Gradients& out) {
    const int64_t n = run.length(), K = pass.key_width;
    for (int64_t i = 0, j = 0; i < n; ++i) {
        const int64_t scalar = pass.scalar(lane.row, run.first + i, lane.head);
        if (window.count[at + i] == j) {
            zero_row(K, out.d_k, scalar * K, pass.half);
            if (out.d_eta != nullptr) out.d_eta[scalar] = 0.0f;
            if (out.d_erase != nullptr) out.d_erase[scalar] = 0.0f;
            continue;
        }
        const float* key = window.k + (at + j) * pass.key_stride;
        float* d_key = spare.d_right + j * pass.key_stride;
        d_sums[i] -= dot_vectors(pass.keys, key, d_key);
        const int64_t values = (at + j) * pass.value_stride;
        float d_write = dot_vectors(pass.values, window.d_u + values, window.v + values);
        if (pass.erases) {
            const float* d_left = spare.d_left + j * pass.key_stride;
            const float d_strength = dot_vectors(pass.keys, key, d_left), strength = window.erase[at + j];
            d_sums[i] += static_cast<double>(strength) * d_strength;
            for (int64_t l = 0; l < pass.keys; l += kLanes)
                store(d_key + l, load(d_key + l) + load(d_left + l) * strength);
            if (out.d_erase != nullptr) {
                out.d_erase[scalar] = d_strength;
            } else {
                d_write += d_strength;
            }
        }
        if (out.d_eta != nullptr) out.d_eta[scalar] = d_write;
        unpack_row(K, d_key, out.d_k, scalar * K, pass.half);
        ++j;
    }
    // G is a sum from the run's start on, so the gradient of its terms is summed from the run's end.
    double sum = 0.0;
    for (int64_t i = n - 1; i >= 0; --i) {
        const int64_t scalar = pass.scalar(lane.row, run.first + i, lane.head);
        sum += d_sums[i];
        const bool open = pass.opens(lane.row, run.first + i, lane.head) && pass.log_decay[scalar] >= kForgotten;
        out.d_log_decay[scalar] = open ? static_cast<float>(sum) : 0.0f;
    }
}

// Phase 4 for one run.
template <bool Pairs>
void gather_run(
    const Pass& pass, const Window& window, Lane lane, const MemoryRun& run, const Gradients& out, const Spare& spare) {
    const int64_t at = run.first % kWindow, n = run.length(), m = window.count[at + n - 1], K = pass.key_width;
    const int64_t V = pass.value_width, keys = pass.keys, stride = pass.key_stride, values = pass.value_stride;
    const int64_t slot = run.first % kWindow / pass.chunk * K * values;
    const int32_t* position = window.position + at;
    const int32_t* count = window.count + at;
    const Columns all{0, V};
    const float* k = window.k + at * stride;
    const float* q = window.q + at * stride;
    const float* k_right = Pairs ? window.k_pairs + at * stride : k;
    const float* q_right = Pairs ? window.q_pairs + at * stride : q;
    const OverValues<Pairs> over{pass, spare};
    const Matrix d_o = pass.reads() ? over.left(n, window.d_o + at * values, spare.d_o) : Matrix{nullptr, 0};
    const Matrix u = over.left(m, window.u + at * values, spare.u);
    const Matrix d_u = pass.erases ? over.left(m, window.d_u + at * values, spare.d_u) : Matrix{nullptr, 0};
    double d_sums[kChunk] = {};
    float factors[kChunk];

    const bool starts = pass.starts(run), from_end = has_end_gradient(pass, out, run);
    const float* start = window.starts + slot;
    if (starts && run.begin >= 0) {
        load_state(pass, all, pass.initial_state + pass.stream_state(run.begin, lane.head), spare.state);
        start = spare.state;
    }
    if (starts) {
        over.transpose_state(start);
        if (pass.reads()) over.multiply_state(n, d_o, {spare.d_queries, stride, 0.0f, window.from_start + at});
        if (pass.erases) {
            for (int64_t j = 0; j < m; ++j) factors[j] = -window.from_start[at + position[j]];
            over.multiply_state(m, d_u, {spare.d_left, stride, 0.0f, factors});
        }
    }
    if (from_end) {
        // A state that comes in or goes out has rows without padding.
        const bool comes_in = run.end >= 0;
        const float* d_end =
            comes_in ? out.d_final_state + pass.stream_state(run.end, lane.head) : window.d_ends + slot;
        double through = 0.0;
        for (int64_t i = 0; i < K && starts; ++i)
            through += comes_in ? dot(V, d_end + i * V, start + i * values)
                                : dot_vectors(pass.values, d_end + i * values, start + i * values);
        through *= window.from_start[at + n - 1];
        if (comes_in) {
            load_state(pass, all, d_end, spare.state);
            d_end = spare.state;
        }
        over.transpose_state(d_end);
        over.multiply_state(m, u, {spare.d_right, stride, 0.0f, window.to_end + at});
        for (int64_t j = 0; j < m; ++j) through += dot_vectors(keys, k + j * stride, spare.d_right + j * stride);
        d_sums[n - 1] += through;
    } else if (!pass.reads()) {
        zero_block(m, keys, spare.d_right, stride);
    }

    Ahead d_k_lines = pass.ahead(out.d_k, K, lane.row, lane.head, run.first, {0, K});
    Ahead d_q_lines = pass.ahead(out.d_q, K, lane.row, lane.head, run.first, {0, K}, &d_k_lines);
    over.transpose(m, u, kChunk);
    if (pass.reads()) {
        multiply_part<Pairs>(
            n, [count](int64_t i, int64_t rows) { return count[i + rows - 1]; }, over.terms(), d_o, spare.transposed,
            kChunk, {spare.d_pairs, kChunk, 0.0f, nullptr, &d_q_lines});
        weigh_pairs(n, count, window.ratio + at * kChunk, spare.d_pairs);
        multiply_pairs<Pairs>(
            n, m, pass, spare, [count](int64_t i, int64_t rows) { return Range{0, count[i + rows - 1]}; },
            [position, n](int64_t j, int64_t) { return Range{position[j], n}; }, nullptr, k_right,
            {spare.d_queries, stride, starts ? 1.0f : 0.0f}, q_right, {spare.d_right, stride, from_end ? 1.0f : 0.0f});
    }
    if (pass.erases) {
        multiply_part<Pairs>(
            m, [](int64_t i, int64_t rows) { return i + rows; }, over.terms(), d_u, spare.transposed, kChunk,
            {spare.d_pairs, kChunk});
        for (int64_t j = 0; j < m; ++j) factors[j] = -1.0f;
        weigh_strict(m, position, window.ratio + at * kChunk, factors, spare.d_pairs);
        multiply_pairs<Pairs>(
            m, m, pass, spare, [](int64_t j, int64_t rows) { return Range{0, j + rows}; },
            [m](int64_t j, int64_t) { return Range{j, m}; }, window.erase + at, k_right,
            {spare.d_left, stride, starts ? 1.0f : 0.0f}, k_right, {spare.d_right, stride, 1.0f});
    }
    for (int64_t i = 0; i < n && pass.reads(); ++i) {
        d_sums[i] += dot_vectors(keys, q + i * stride, spare.d_queries + i * stride);
        const int64_t scalar = pass.scalar(lane.row, run.first + i, lane.head);
        unpack_row(K, spare.d_queries + i * stride, out.d_q, scalar * K, pass.half);
    }
    store_gate_gradients(pass, window, lane, run, at, spare, d_sums, out);
}

template <bool Pairs>
int32_t run_backward(const Pass& pass, const Gradients& out, int32_t threads) {
    Spare counted{};
    const int64_t wide = smaller(pass.values, kColumns);
    const int64_t smaller_phases = larger(PrepareSpare::floats(pass), (kChunk + pass.key_pairs) * wide);
    const int64_t spare_bytes = larger(Spare::place(&counted, pass, {nullptr}), bytes_of(smaller_phases));
    return run_batches(
        pass, true, threads, 3.0 * pass.operations(), 4 * pass.windows, spare_bytes,
        [&](const Batch& batch, Crew& crew) {
            const int64_t width = columns_per_task(pass, batch.lanes, crew.workers);
            const int64_t blocks = (pass.value_width + width - 1) / width;
            for (int64_t number = pass.windows - 1; number >= 0; --number) {
                const int64_t first = number * pass.window_chunks;
                const int64_t chunks = batch.lanes * smaller(pass.chunks - first, pass.window_chunks);
                const auto over_chunks = [&](const auto& body) {
                    crew.share(chunks, [&](int64_t task) {
                        const int64_t i = task % batch.lanes;
                        body(batch.window(i), batch.lane(i), first + task / batch.lanes, task + crew.workers);
                    });
                };
                const auto over_columns = [&](const auto& body) {
                    crew.share(batch.lanes * blocks, [&](int64_t task) {
                        const int64_t i = task / blocks, column = task % blocks * width;
                        body(
                            batch.window(i), batch.lane(i), Columns{column, smaller(width, pass.value_width - column)});
                    });
                };
                over_chunks([&](const Window& window, Lane lane, int64_t chunk, int64_t later) {
                    Cursor own = batch.spare;
                    NextInputs next(batch, first, later, out.d_o);
                    float* ratio = window.ratio + chunk * pass.chunk % kWindow * kChunk;
                    prepare_chunk<Pairs>(pass, window, true, lane, chunk, ratio, PrepareSpare(pass, own), &next.q);
                    pack_output_gradient(pass, window, lane, chunk, out.d_o);
                });
                over_columns([&](const Window& window, Lane lane, Columns columns) {
                    replay<Pairs>(pass, window, lane, number, columns, out, batch.spare);
                });
                over_columns([&](const Window& window, Lane lane, Columns columns) {
                    carry_back<Pairs>(pass, window, lane, number, columns, out, batch.spare);
                });
                over_chunks([&](const Window& window, Lane lane, int64_t chunk, int64_t) {
                    Spare spare{};
                    Spare::place(&spare, pass, batch.spare);
                    const MemoryRun* const last = pass.plan->last(lane.row, chunk);
                    for (const MemoryRun* run = pass.plan->first(lane.row, chunk); run < last; ++run)
                        gather_run<Pairs>(pass, window, lane, *run, out, spare);
                });
            }
        });
}

}  // namespace

int32_t memory_backward(
    const ssmn_memory_call* call,
    const void* q,
    const void* k,
    const void* v,
    const float* eta,
    const float* log_decay,
    const float* erase,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    const float* states,
    const void* d_o,
    const void* d_u,
    const float* d_final_state,
    void* d_q,
    void* d_k,
    void* d_v,
    float* d_eta,
    float* d_log_decay,
    float* d_erase,
    float* d_initial_state,
    int32_t threads) {
    const MemoryArguments in{*call, q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state};
    const MemoryPlan plan(in, chunk_size(*call));
    if (!plan.made()) return SSMN_OUT_OF_MEMORY;
    const Pass pass(in, plan);
    const int64_t stream_size = pass.heads * pass.state_size();
    // A stream without steps hands its state on; one whose first step is a reset does not see it.
    for (int64_t n = 0; n < pass.streams && d_initial_state != nullptr; ++n)
        copy_or_clear(stream_size, plan.is_empty(n) ? d_final_state : nullptr, n * stream_size, d_initial_state);

    const Gradients out{states, d_o, d_u, d_final_state, d_q, d_k, d_v, d_eta, d_log_decay, d_erase, d_initial_state};
    if constexpr (kHasPairs)
        if (pass.half) return run_backward<true>(pass, out, threads);
    return run_backward<false>(pass, out, threads);
}

}  // namespace SSMN_PATH
}  // namespace ssmn

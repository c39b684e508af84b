// The fused memory, backward. The forward pass (memory_pass.cpp has its formulas) leaves one state per window of steps.
// From the last window to the first, four phases:
//
//     1  in parallel over chunks     R, R o Q K^T and the factor of I - N, once more
//     2  over columns, forward       U and every chunk's S_0, once more
//     3  over columns, backward      the gradients that pass from step to step: with P = R o Q K^T and dS of S_n,
//                                    (I - N)^T dB = P^T dO + diag(exp(G_n - G)) K dS
//                                    dS_0 = exp(G_n) dS + Q^T diag(exp(G)) dO - K^T diag(e exp(G)) dB
//                                    dV = diag(w) dB, dw = rows of dB o V
//     4  in parallel over chunks     what sums over all columns, whole and in one order: with A = R o (dO U^T),
//                                    M = -R o (dB U^T) below the diagonal,
//                                    dQ   = A K + diag(exp(G)) dO S_0^T
//                                    dK+  = M K - diag(exp(G)) dB S_0^T               (to be scaled by e)
//                                    dK-  = A^T Q + M^T diag(e) K + diag(exp(G_n - G)) U dS^T
//                                    dK   = diag(e) dK+ + dK-
//
// G comes in through exp(G_i) beside q_i and e_i k_i, and through exp(-G_j) beside k_j, so its gradient needs no matrix:
// dG_i = q_i.dQ_i + e_i k_i.dK+_i - k_i.dK-_i, and of the last step also that of exp(G_n). de_i = k_i.dK+_i.

#include "memory_pass.h"
#include "memory_prepare.h"
#include "memory_write.h"
#include "path.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

struct Gradients {
    const float* states;
    const void* d_o;
    const float* d_final_state;
    void *d_q, *d_k, *d_v;
    float *d_eta, *d_log_decay, *d_erase, *d_initial_state;
};

bool goes_on(const Pass& pass, const MemoryRun& run) {
    return run.end < 0 && run.last < pass.steps && (&run)[1].begin == SSMN_GO_ON;
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
    const int64_t first = chunk * kChunk, n = smaller(kChunk, pass.steps - first), V = pass.value_width;
    pack(
        n, V, d_o, pass.scalar(lane.row, first, lane.head) * V, pass.heads * V, pass.half, nullptr,
        window.d_o + first % kWindow * pass.value_stride, pass.value_stride);
}

// Phase 2.
void replay(
    const Pass& pass, const Window& window, Lane lane, int64_t number, Columns columns, const Gradients& out, Cursor spare) {
    const int64_t first = number * kWindowChunks, last = smaller(pass.chunks, first + kWindowChunks);
    const int64_t whole = columns.whole(), size = pass.key_width * pass.value_stride;
    float* other = spare.take<float>(kChunk * whole);
    if (number > 0) load_state(pass, columns, out.states + pass.stored_state(lane.row, number, lane.head), window.state);
    for (const MemoryRun* run = pass.plan->first(lane.row, first); run < pass.plan->last(lane.row, last - 1); ++run) {
        const int64_t at = run->first - number * kWindow;
        start_run(pass, window, lane, *run, columns);
        if (run->begin == SSMN_GO_ON)
            copy_block(
                pass.key_width, whole, window.state + columns.first, pass.value_stride,
                window.starts + (run->first / kChunk - first) * size + columns.first, pass.value_stride);
        float* u = window.u + at * pass.value_stride + columns.first;
        update_run(pass, window, lane, *run, at, columns, u, pass.value_stride, other);
        if (goes_on(pass, *run)) advance_run(pass, window, *run, at, columns, u, pass.value_stride, other);
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

// Phase 3.
void carry_back(
    const Pass& pass, const Window& window, Lane lane, int64_t number, Columns columns, const Gradients& out, Cursor spare) {
    const int64_t first = number * kWindowChunks, last = smaller(pass.chunks, first + kWindowChunks);
    const int64_t whole = columns.whole(), K = pass.key_width, stride = pass.value_stride, size = K * stride;
    float* other = spare.take<float>(kChunk * whole);
    float* d_state = window.d_state + columns.first;
    const MemoryRun* const begin = pass.plan->first(lane.row, first);
    for (const MemoryRun* run = pass.plan->last(lane.row, last - 1) - 1; run >= begin; --run) {
        const int64_t at = run->first - number * kWindow, n = run->length(), m = window.count[at + n - 1];
        const bool from_end = has_end_gradient(pass, out, *run);
        if (from_end && run->end >= 0) {
            load_state(pass, columns, out.d_final_state + pass.stream_state(run->end, lane.head), window.d_state);
        } else if (from_end) {
            float* slot = window.d_ends + (run->first / kChunk - first) * size + columns.first;
            copy_block(K, whole, d_state, stride, slot, stride);
        }
        const Matrix queries{window.q + at * pass.key_stride, pass.key_stride};
        const Matrix keys{window.k + at * pass.key_stride, pass.key_stride};
        const float* d_o = window.d_o + at * stride + columns.first;
        float* d_u = window.d_u + at * stride + columns.first;
        const int32_t* position = window.position + at;
        multiply(
            m, whole, [position, n](int64_t j, int64_t) { return Range{position[j], n}; },
            Matrix{window.pairs + at * kChunk, kChunk}.transposed(), d_o, stride, {d_u, stride});
        if (from_end)
            multiply_all(m, whole, K, keys, d_state, stride, {d_u, stride, 1.0f, window.to_end + at});
        if (pass.erases) solve_transposed(m, whole, window.factor + at * kChunk, d_u, stride, other);
        store_value_gradient(pass, window, lane, *run, at, columns, d_u, other, out.d_v);
        if (!pass.starts(*run)) continue;

        const float kept = from_end ? window.from_start[at + n - 1] : 0.0f;
        scale_block(n, whole, window.from_start + at, d_o, stride, other, whole);
        multiply_all(K, whole, n, queries.transposed(), other, whole, {d_state, stride, kept});
        if (pass.erases && m > 0) {
            scale_block(m, whole, window.minus_erase + at, d_u, stride, other, whole);
            multiply_all(K, whole, m, keys.transposed(), other, whole, {d_state, stride, 1.0f});
        }
        if (run->begin >= 0)
            store_state(pass, columns, window.d_state, out.d_initial_state + pass.stream_state(run->begin, lane.head));
    }
}

// What one worker needs for phase 4.
struct Spare {
    float *transposed, *state, *d_queries, *d_left, *d_right, *d_pairs, *d_factor, *values;

    static int64_t floats(const Pass& pass) {
        return pass.values * larger(pass.key_stride, kChunk) + pass.key_width * pass.value_stride +
               3 * kChunk * pass.key_stride + 2 * kChunk * kChunk + pass.values;
    }

    Spare(const Pass& pass, Cursor cursor)
        : transposed(cursor.take<float>(pass.values * larger(pass.key_stride, kChunk))),
          state(cursor.take<float>(pass.key_width * pass.value_stride)),
          d_queries(cursor.take<float>(kChunk * pass.key_stride)),
          d_left(cursor.take<float>(kChunk * pass.key_stride)),
          d_right(cursor.take<float>(kChunk * pass.key_stride)),
          d_pairs(cursor.take<float>(kChunk * kChunk)),
          d_factor(cursor.take<float>(kChunk * kChunk)),
          values(cursor.take<float>(pass.values)) {}
};

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
    const int64_t n = run.length(), m = window.count[at + n - 1], K = pass.key_width, V = pass.value_width;
    for (int64_t i = 0, j = 0; i < n; ++i) {
        const int64_t scalar = pass.scalar(lane.row, run.first + i, lane.head);
        if (window.count[at + i] == j) {
            zero_row(K, out.d_k, scalar * K, pass.half);
            out.d_eta[scalar] = 0.0f;
            if (out.d_erase != nullptr) out.d_erase[scalar] = 0.0f;
            continue;
        }
        const float* key = window.k + (at + j) * pass.key_stride;
        float* d_key = spare.d_right + j * pass.key_stride;
        d_sums[i] -= dot_vectors(pass.keys, key, d_key);
        pack(1, V, pass.v, scalar * V, 0, pass.half, nullptr, spare.values, 0);
        float d_write = dot_vectors(pass.values, window.d_u + (at + j) * pass.value_stride, spare.values);
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
        out.d_eta[scalar] = d_write;
        unpack_row(K, d_key, out.d_k, scalar * K, pass.half);
        ++j;
    }
    (void)m;
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
void gather_run(
    const Pass& pass, const Window& window, Lane lane, const MemoryRun& run, const Gradients& out, const Spare& spare) {
    const int64_t at = run.first % kWindow, n = run.length(), m = window.count[at + n - 1], K = pass.key_width;
    const int64_t V = pass.value_width, keys = pass.keys, stride = pass.key_stride, values = pass.value_stride;
    const int64_t slot = run.first % kWindow / kChunk * K * values;
    const int32_t* position = window.position + at;
    const int32_t* count = window.count + at;
    const Columns all{0, V};
    const float* k = window.k + at * stride;
    const float* q = window.q + at * stride;
    const float* u = window.u + at * values;
    const float* d_u = window.d_u + at * values;
    const float* d_o = window.d_o + at * values;
    double d_sums[kChunk] = {};
    float factors[kChunk];

    const bool starts = pass.starts(run), from_end = has_end_gradient(pass, out, run);
    const float* start = window.starts + slot;
    if (starts && run.begin >= 0) {
        load_state(pass, all, pass.initial_state + pass.stream_state(run.begin, lane.head), spare.state);
        start = spare.state;
    }
    if (starts) {
        transpose_block(K, pass.values, start, values, spare.transposed, stride);
        multiply_all(
            n, keys, V, {d_o, values}, spare.transposed, stride, {spare.d_queries, stride, 0.0f, window.from_start + at});
        if (pass.erases) {
            for (int64_t j = 0; j < m; ++j) factors[j] = -window.from_start[at + position[j]];
            multiply_all(m, keys, V, {d_u, values}, spare.transposed, stride, {spare.d_left, stride, 0.0f, factors});
        }
    }
    if (from_end) {
        const float kept = window.from_start[at + n - 1];
        double through = 0.0;
        // A state that comes in or goes out has rows without padding.
        const float* d_end = window.d_ends + slot;
        int64_t d_end_row = values;
        if (run.end >= 0) {
            d_end = out.d_final_state + pass.stream_state(run.end, lane.head);
            d_end_row = V;
        }
        if (starts)
            for (int64_t i = 0; i < K; ++i) through += static_cast<double>(kept) * dot(V, d_end + i * d_end_row, start + i * values);
        if (run.end >= 0) {
            load_state(pass, all, d_end, spare.state);
            d_end = spare.state;
        }
        transpose_block(K, pass.values, d_end, values, spare.transposed, stride);
        multiply_all(m, keys, V, {u, values}, spare.transposed, stride, {spare.d_right, stride, 0.0f, window.to_end + at});
        for (int64_t j = 0; j < m; ++j) through += dot_vectors(keys, k + j * stride, spare.d_right + j * stride);
        d_sums[n - 1] += through;
    }

    const auto seen = [count](int64_t i, int64_t rows) { return count[i + rows - 1]; };
    const auto seers = [position, n](int64_t j, int64_t) { return Range{position[j], n}; };
    transpose_block(m, pass.values, u, values, spare.transposed, kChunk);
    multiply_part(n, seen, V, {d_o, values}, spare.transposed, kChunk, {spare.d_pairs, kChunk});
    weigh_pairs(n, count, window.ratio + at * kChunk, spare.d_pairs);
    const Matrix d_pairs{spare.d_pairs, kChunk};
    multiply(
        n, keys, [&](int64_t i, int64_t rows) { return Range{0, seen(i, rows)}; }, d_pairs, k, stride,
        {spare.d_queries, stride, starts ? 1.0f : 0.0f});
    multiply(m, keys, seers, d_pairs.transposed(), q, stride, {spare.d_right, stride, from_end ? 1.0f : 0.0f});
    if (pass.erases) {
        multiply_part(
            m, [](int64_t i, int64_t rows) { return i + rows; }, V, {d_u, values}, spare.transposed, kChunk,
            {spare.d_factor, kChunk});
        for (int64_t j = 0; j < m; ++j) factors[j] = -1.0f;
        weigh_strict(m, position, window.ratio + at * kChunk, factors, spare.d_factor);
        const Matrix d_factor{spare.d_factor, kChunk};
        multiply(
            m, keys, [](int64_t j, int64_t rows) { return Range{0, j + rows}; }, d_factor, k, stride,
            {spare.d_left, stride, starts ? 1.0f : 0.0f});
        scale_block(m, kChunk, window.erase + at, spare.d_factor, kChunk, spare.d_factor, kChunk);
        multiply(
            m, keys, [m](int64_t j, int64_t) { return Range{j, m}; }, d_factor.transposed(), k, stride,
            {spare.d_right, stride, 1.0f});
    }
    for (int64_t i = 0; i < n; ++i) {
        d_sums[i] += dot_vectors(keys, q + i * stride, spare.d_queries + i * stride);
        const int64_t scalar = pass.scalar(lane.row, run.first + i, lane.head);
        unpack_row(K, spare.d_queries + i * stride, out.d_q, scalar * K, pass.half);
    }
    store_gate_gradients(pass, window, lane, run, at, spare, d_sums, out);
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
    const MemoryPlan plan(in);
    if (!plan.made()) return SSMN_OUT_OF_MEMORY;
    const Pass pass(in, plan);
    const int64_t stream_size = pass.heads * pass.state_size();
    // A stream without steps hands its state on; one whose first step is a reset does not see it.
    for (int64_t n = 0; n < pass.streams && d_initial_state != nullptr; ++n)
        copy_or_clear(stream_size, plan.is_empty(n) ? d_final_state : nullptr, n * stream_size, d_initial_state);

    const Gradients out{states, d_o, d_final_state, d_q, d_k, d_v, d_eta, d_log_decay, d_erase, d_initial_state};
    const int64_t spare = larger(
        larger(pass.keys * kChunk, kChunk * smaller(pass.values, kColumns)), Spare::floats(pass));
    return run_batches(
        pass, true, threads, 3.0 * pass.operations(), 4 * pass.windows, bytes_of(spare),
        [&](const Batch& batch, Crew& crew) {
            const int64_t width = columns_per_task(pass, batch.lanes, crew.gang.workers);
            const int64_t blocks = (pass.value_width + width - 1) / width;
            for (int64_t number = pass.windows - 1; number >= 0; --number) {
                const int64_t first = number * kWindowChunks;
                const int64_t chunks = batch.lanes * smaller(pass.chunks - first, kWindowChunks);
                const auto over_chunks = [&](const auto& body) {
                    crew.share(chunks, [&](int64_t task) {
                        const int64_t i = task % batch.lanes;
                        body(batch.window(i), batch.lane(i), first + task / batch.lanes);
                    });
                };
                const auto over_columns = [&](const auto& body) {
                    crew.share(batch.lanes * blocks, [&](int64_t task) {
                        const int64_t i = task / blocks, column = task % blocks * width;
                        body(batch.window(i), batch.lane(i), Columns{column, smaller(width, pass.value_width - column)});
                    });
                };
                over_chunks([&](const Window& window, Lane lane, int64_t chunk) {
                    Cursor own = batch.spare;
                    float* ratio = window.ratio + chunk * kChunk % kWindow * kChunk;
                    prepare_chunk(pass, window, lane, chunk, ratio, own.take<float>(pass.keys * kChunk));
                    pack_output_gradient(pass, window, lane, chunk, d_o);
                });
                over_columns([&](const Window& window, Lane lane, Columns columns) {
                    replay(pass, window, lane, number, columns, out, batch.spare);
                });
                over_columns([&](const Window& window, Lane lane, Columns columns) {
                    carry_back(pass, window, lane, number, columns, out, batch.spare);
                });
                over_chunks([&](const Window& window, Lane lane, int64_t chunk) {
                    const Spare spare(pass, batch.spare);
                    const MemoryRun* const last = plan.last(lane.row, chunk);
                    for (const MemoryRun* run = plan.first(lane.row, chunk); run < last; ++run)
                        gather_run(pass, window, lane, *run, out, spare);
                });
            }
        });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

// The fused memory, forward: every step is written and read in one pass over the sequence.
//
// Steps are worked on in runs (memory_plan.h): at most a chunk of consecutive steps that share one starting state S_0.
// Within a run of n steps, G_i is the sum of log_keep up to and with step i, and R_ij = exp(G_i - G_j) for j <= i (no
// exponent is ever positive). A closed step has w = e = log_keep = 0: it has a row in Q and O, but none in K, V and U,
// which hold the m written steps alone. With one row per step,
//
//     write   (I - N) U = diag(w) V - diag(e) exp(G) K S_0,   N_ij = -e_i R_ij k_i.k_j for j < i
//     read    O = exp(G) Q S_0 + (R o Q K^T) U
//     state   S_n = exp(G_n) S_0 + (exp(G_n - G) K)^T U
//
// (o is the elementwise product). R, R o Q K^T and N belong to all columns of V alike, and to one chunk alone: they are
// computed first, in parallel over chunks, for a window of chunks. The three lines above follow in the order of time,
// in parallel over lanes (a head of a row) and blocks of columns.

#include "memory_pass.h"

#include "memory_prepare.h"
#include "memory_step.h"
#include "memory_write.h"
#include "parallel.h"
#include "path.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

struct Outputs {
    void *o, *u;
    float *states, *final_state;
};

// O of a run, from the state before it; `spare` is [max(K, kChunk), columns].
template <bool Pairs>
void read_run(
    const Pass& pass,
    const Window& window,
    Lane lane,
    const MemoryRun& run,
    int64_t at,
    Columns columns,
    const float* u,
    float* o,
    float* spare,
    void* output) {
    const int64_t n = run.length(), m = window.count[at + n - 1], whole = columns.whole();
    const bool starts = pass.starts(run);
    const int32_t* count = window.count + at;
    const float* state = window.state + columns.first;
    Ahead output_lines = pass.ahead(output, pass.value_width, lane.row, lane.head, run.first, columns);
    const Into carried{o, whole, 0.0f, window.from_start + at, &output_lines}, all{o, whole, starts ? 1.0f : 0.0f};
    if constexpr (Pairs) {
        if (starts) {
            pair_rows(pass.key_width, whole, nullptr, state, pass.value_stride, spare, whole);
            const Matrix queries{window.q_rows + at * pass.key_pair_stride, pass.key_pair_stride};
            multiply_all<true>(n, whole, pass.key_pairs, queries, spare, whole, carried);
        }
        pair_rows(m, whole, nullptr, u, whole, spare, whole);
        multiply<true>(
            n, whole, [count](int64_t i, int64_t rows) { return Range{0, (count[i + rows - 1] + 1) / 2}; },
            {window.pairs + at * kChunk, kChunk / 2}, spare, whole, all);
    } else {
        if (starts)
            multiply_all(
                n, whole, pass.key_width, {window.q + at * pass.key_stride, pass.key_stride}, state, pass.value_stride,
                carried);
        multiply(
            n, whole, [count](int64_t i, int64_t rows) { return Range{0, count[i + rows - 1]}; },
            {window.pairs + at * kChunk, kChunk}, u, whole, all);
    }
    for (int64_t i = 0; i < n; ++i)
        unpack_row(
            columns.width, o + i * whole, output,
            pass.scalar(lane.row, run.first + i, lane.head) * pass.value_width + columns.first, pass.half);
}

// The updates of a run [m, columns] to all of its steps: zeros where nothing is written.
void store_updates(
    const Pass& pass,
    const Window& window,
    Lane lane,
    const MemoryRun& run,
    int64_t at,
    Columns columns,
    const float* u,
    void* output) {
    for (int64_t i = 0, j = 0; i < run.length(); ++i) {
        const int64_t offset = pass.scalar(lane.row, run.first + i, lane.head) * pass.value_width + columns.first;
        if (window.count[at + i] == j) {
            zero_row(columns.width, output, offset, pass.half);
        } else {
            unpack_row(columns.width, u + j++ * columns.whole(), output, offset, pass.half);
        }
    }
}

// One lane's columns over one window of steps.
template <bool Pairs>
void write_and_read(
    const Pass& pass,
    const Window& window,
    Lane lane,
    int64_t number,
    Columns columns,
    const Outputs& out,
    Cursor spare) {
    const int64_t whole = columns.whole();
    float* u = spare.take<float>(kChunk * whole);
    float* other = spare.take<float>(kChunk * whole);
    float* pairs = Pairs ? spare.take<float>(larger(pass.key_width, kChunk) * whole) : nullptr;
    const int64_t first = number * pass.window_chunks, last = smaller(pass.chunks, first + pass.window_chunks);
    if (number > 0)
        store_state(pass, columns, window.state, out.states + pass.stored_state(lane.row, number, lane.head));
    for (const MemoryRun* run = pass.plan->first(lane.row, first); run < pass.plan->last(lane.row, last - 1); ++run) {
        const int64_t at = run->first - number * kWindow;
        start_run(pass, window, lane, *run, columns);
        update_run(pass, window, lane, *run, at, columns, u, whole, nullptr, other);
        if (pass.reads()) read_run<Pairs>(pass, window, lane, *run, at, columns, u, other, pairs, out.o);
        if (out.u != nullptr) store_updates(pass, window, lane, *run, at, columns, u, out.u);
        Ahead next = pass.ahead(pass.v, pass.value_width, lane.row, lane.head, run->last, columns);
        advance_run<Pairs>(pass, window, *run, at, columns, u, whole, other, &next);
        if (run->end >= 0 && out.final_state != nullptr)
            store_state(pass, columns, window.state, out.final_state + pass.stream_state(run->end, lane.head));
    }
}

template <bool Pairs>
int32_t run_forward(const Pass& pass, const Outputs& out, int32_t threads) {
    const int64_t wide = smaller(pass.values, kColumns);
    const int64_t spare =
        larger(PrepareSpare::floats(pass) + kChunk * kChunk, (2 * kChunk + larger(pass.key_width, kChunk)) * wide);
    return run_batches(
        pass, false, threads, pass.operations(), 2 * pass.windows, bytes_of(spare),
        [&](const Batch& batch, Crew& crew) {
            const int64_t width = columns_per_task(pass, batch.lanes, crew.workers);
            const int64_t blocks = (pass.value_width + width - 1) / width;
            for (int64_t number = 0; number < pass.windows; ++number) {
                const int64_t first = number * pass.window_chunks;
                crew.share(batch.lanes * smaller(pass.chunks - first, pass.window_chunks), [&](int64_t task) {
                    Cursor own = batch.spare;
                    float* ratio = own.take<float>(kChunk * kChunk);
                    const PrepareSpare prepare(pass, own);
                    const int64_t i = task % batch.lanes, chunk = first + task / batch.lanes;
                    NextInputs next(batch, first, task + crew.workers, nullptr);
                    prepare_chunk<Pairs>(pass, batch.window(i), false, batch.lane(i), chunk, ratio, prepare, &next.q);
                });
                crew.share(batch.lanes * blocks, [&](int64_t task) {
                    const int64_t i = task / blocks, column = task % blocks * width;
                    const Columns columns{column, smaller(width, pass.value_width - column)};
                    write_and_read<Pairs>(pass, batch.window(i), batch.lane(i), number, columns, out, batch.spare);
                });
            }
        });
}

}  // namespace

int32_t memory(
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
    void* o,
    void* u,
    float* states,
    float* final_state,
    int32_t threads) {
    const MemoryArguments in{*call, q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state};
    const MemoryPlan plan(in, chunk_size(*call));
    if (!plan.made()) return SSMN_OUT_OF_MEMORY;
    const Pass pass(in, plan);
    const int64_t stream_size = pass.heads * pass.state_size();
    for (int64_t n = 0; n < pass.streams && final_state != nullptr; ++n)
        if (plan.is_empty(n)) copy_or_clear(stream_size, initial_state, n * stream_size, final_state);

    if (pass.steps == 1 && pass.reads() && u == nullptr)
        return parallel_for(
            pass.lanes(), threads, pass.operations(), 2 * (pass.keys + pass.values), [&](int64_t task, float* spare) {
                step_lane(pass, {task / pass.heads, task % pass.heads}, o, final_state, spare);
            });
    const Outputs out{o, u, states, final_state};
    if constexpr (kHasPairs)
        if (pass.half) return run_forward<true>(pass, out, threads);
    return run_forward<false>(pass, out, threads);
}

}  // namespace SSMN_PATH
}  // namespace ssmn

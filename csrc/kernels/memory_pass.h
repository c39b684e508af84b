// What the forward and the backward pass of the fused memory share. memory_pass.cpp explains the passes.
#ifndef SSMN_MEMORY_PASS_H
#define SSMN_MEMORY_PASS_H

#include "memory_plan.h"
#include "pool.h"
#include "ssmn.h"
#include "tile.h"
#include "workspace.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kWindow = kMemoryWindow;
constexpr int64_t kColumns = 64;          // of the values, at most, that a worker takes at a time
constexpr int64_t kSolveRows = 16;        // rows of a diagonal block of the triangular system
constexpr float kForgotten = -1000.0f;    // exp of this is 0: a stronger decay is the same
constexpr int64_t kBatchBytes = 8 << 20;  // about as much for the windows of the lanes that are worked on together
constexpr double kOperationsPerWorker = 5e5;

static_assert(kWindow % kChunk == 0 && kChunk % (2 * kSolveRows) == 0, "whole chunks and blocks");

// A row stride for rows of `width` floats: strides of many whole cache lines would share few sets of the cache.
SSMN_INLINE int64_t row_stride(int64_t width) {
    const int64_t whole = whole_vectors(width);
    return whole >= 128 && whole % 64 == 0 ? whole + 16 : whole;
}

// Some columns of the values.
struct Columns {
    int64_t first, width;

    int64_t whole() const { return whole_vectors(width); }
};

// The arguments, with every width and stride that follows from them.
struct Pass {
    int64_t rows, steps, heads, key_width, value_width, streams;
    bool half, erases, mask_by_head;
    int64_t keys, values;                        // widths in whole vectors
    int64_t key_stride, value_stride;            // of rows in the workspace
    int64_t key_pairs, value_pairs;              // pairs of bfloat16 in a row
    int64_t key_pair_stride, value_pair_stride;  // of rows of pairs
    int64_t chunk, window_chunks;                // steps of a chunk, chunks of a window
    int64_t chunks, windows;
    const void *q, *k, *v;
    const float *eta, *erase, *log_decay;
    const uint8_t* mask;
    const float* initial_state;
    const MemoryPlan* plan;

    Pass(const MemoryArguments& in, const MemoryPlan& plan)
        : rows(in.call.rows),
          steps(in.call.steps),
          heads(in.call.heads),
          key_width(in.call.key_width),
          value_width(in.call.value_width),
          streams(in.call.streams),
          half(in.call.half != 0),
          erases(in.call.rule != SSMN_HEBBIAN),
          mask_by_head(in.call.mask_heads > 1),
          keys(whole_vectors(key_width)),
          values(whole_vectors(value_width)),
          key_stride(row_stride(key_width)),
          value_stride(row_stride(value_width)),
          key_pairs((key_width + 1) / 2),
          value_pairs((value_width + 1) / 2),
          key_pair_stride(row_stride(key_pairs)),
          value_pair_stride(row_stride(value_pairs)),
          chunk(chunk_size(in.call)),
          window_chunks(kWindow / chunk),
          chunks((steps + chunk - 1) / chunk),
          windows((steps + kWindow - 1) / kWindow),
          q(in.q),
          k(in.k),
          v(in.v),
          eta(in.eta),
          erase(in.call.rule == SSMN_DELTA ? in.eta : in.erase),
          log_decay(in.log_decay),
          mask(in.mask),
          initial_state(in.initial_state),
          plan(&plan) {}

    int64_t lanes() const { return rows * heads; }
    int64_t scalar(int64_t row, int64_t t, int64_t head) const { return (row * steps + t) * heads + head; }
    int64_t state_size() const { return key_width * value_width; }
    bool opens(int64_t row, int64_t t, int64_t head) const {
        if (mask == nullptr) return true;
        return mask[mask_by_head ? scalar(row, t, head) : row * steps + t] != 0;
    }
    int64_t stream_state(int64_t stream, int64_t head) const { return (stream * heads + head) * state_size(); }
    int64_t stored_state(int64_t row, int64_t window, int64_t head) const {
        return ((row * (windows - 1) + window - 1) * heads + head) * state_size();
    }
    // Multiply-adds of one pass over all steps.
    double operations() const {
        const double per_step = 2.0 * key_width * value_width + chunk * (key_width + value_width);
        return per_step * lanes() * steps;
    }
    int64_t element_bytes() const { return half ? 2 : 4; }
    // Some steps of q, k, v or o of a lane, for as long as there are any.
    Ahead ahead(
        const void* array,
        int64_t width,
        int64_t row_of_batch,
        int64_t head,
        int64_t t,
        Columns columns,
        Ahead* then = nullptr) const {
        const int64_t n = larger(0, smaller(chunk, steps - t));
        return {array,         element_bytes(), scalar(row_of_batch, n > 0 ? t : 0, head) * width + columns.first,
                columns.width, heads * width,   n,
                then};
    }
    // Whether anything is read: a call may write alone.
    bool reads() const { return q != nullptr; }
    // Whether products are taken of pairs of bfloat16.
    bool pairs() const { return kHasPairs && half; }
    bool starts(const MemoryRun& run) const {
        return run.begin == kGoOn || (run.begin >= 0 && initial_state != nullptr);
    }
};

// One head of one row.
struct Lane {
    int64_t row, head;
};

// Room for some arrays of `floats` numbers together.
SSMN_INLINE int64_t bytes_of(int64_t floats) {
    return (floats + 16 * 16) * static_cast<int64_t>(sizeof(float)) / 64 * 64 + 64;
}

// Hands out a piece of memory, or counts what would be handed out if there is none.
struct Cursor {
    char* memory;
    int64_t used = 0;

    template <typename T>
    T* take(int64_t count) {
        T* taken = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + used);
        used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return taken;
    }
};

// What is kept of one lane while a window of steps is worked on. Arrays "by step" are indexed by the step's number in
// the window; those "by write" hold the written steps of a run from the number of the run's first step on.
struct Window {
    int32_t* count;      // by step: written steps of its run up to and with it
    int32_t* position;   // by write: the step's number in its run
    float* from_start;   // by step: exp(G)
    float* to_end;       // by write: exp(G_n - G)
    float* write;        // by write: w
    float* erase;        // by write: e
    float* minus_erase;  // by write: -e exp(G)
    float* q;            // by step [key_stride]
    float* k;            // by write [key_stride]
    float* pairs;        // by step [kChunk]: R o Q K^T
    float* factor;       // by write [kChunk]: N below the diagonal blocks, and the inverses of those of I - N
    float* state;        // [K, value_stride]: S, before the run that comes next
    // with pairs: where `pairs` is wanted in rows of pairs (forward) or in pairs of rows (backward), it is that
    float* q_rows;   // by step [key_pair_stride]: rows of pairs
    float* k_rows;   // by write [key_pair_stride]
    float* k_pairs;  // by write, half as many [key_stride]: pairs of rows
    // for the backward pass
    float* q_pairs;  // by step, half as many [key_stride]
    float* ratio;    // by step [kChunk]: R
    float* u;        // by write [value_stride]
    float* v;        // by write [value_stride]
    float* d_u;      // by write [value_stride]: the gradient of the right-hand side of the triangular system
    float* d_o;      // by step [value_stride]
    float* starts;   // by chunk [K, value_stride]: S_0 of the chunk's first run, if it goes on
    float* d_ends;   // by chunk [K, value_stride]: the gradient of S after its last run, if the next one goes on
    float* d_state;  // [K, value_stride]

    static int64_t bytes(const Pass& pass, bool backward) {
        Window window{};
        return window.place({nullptr, 0}, pass, backward);
    }

    // Takes its arrays from the cursor; returns how many bytes they are.
    int64_t place(Cursor cursor, const Pass& pass, bool backward) {
        const int64_t steps = smaller(pass.steps, kWindow), chunks = (steps + pass.chunk - 1) / pass.chunk;
        const int64_t state_size = pass.key_width * pass.value_stride;
        count = cursor.take<int32_t>(steps);
        position = cursor.take<int32_t>(steps);
        for (float** scalars : {&from_start, &to_end, &write, &erase, &minus_erase})
            *scalars = cursor.take<float>(steps);
        q = cursor.take<float>(steps * pass.key_stride);
        k = cursor.take<float>(steps * pass.key_stride);
        pairs = cursor.take<float>(steps * kChunk);
        factor = pass.erases ? cursor.take<float>(steps * kChunk) : nullptr;
        state = cursor.take<float>(state_size);
        if (pass.pairs()) {
            q_rows = cursor.take<float>(steps * pass.key_pair_stride);
            k_rows = cursor.take<float>(steps * pass.key_pair_stride);
            k_pairs = cursor.take<float>(steps * pass.key_stride);
            if (backward) q_pairs = cursor.take<float>(steps * pass.key_stride);
        }
        if (backward) {
            ratio = cursor.take<float>(steps * kChunk);
            u = cursor.take<float>(steps * pass.value_stride);
            v = cursor.take<float>(steps * pass.value_stride);
            d_u = cursor.take<float>(steps * pass.value_stride);
            d_o = cursor.take<float>(steps * pass.value_stride);
            starts = cursor.take<float>(chunks * state_size);
            d_ends = cursor.take<float>(chunks * state_size);
            d_state = cursor.take<float>(state_size);
        }
        return cursor.used;
    }
};

// Rows of `width` numbers, of which the one at `positions` (or every one) counts, to rows of floats with zeros up to
// whole vectors.
SSMN_APART void pack(
    int64_t n,
    int64_t width,
    const void* from,
    int64_t offset,
    int64_t from_row,
    bool half,
    const int32_t* positions,
    float* to,
    int64_t to_row) {
    const int64_t whole = whole_vectors(width), full = width / kLanes * kLanes;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t start = offset + (positions == nullptr ? i : positions[i]) * from_row;
        float* line = to + i * to_row;
        if (full < whole) store(line + full, Vec{});
        if (half) {
            const uint16_t* source = static_cast<const uint16_t*>(from) + start;
            for (int64_t j = 0; j < full; j += kLanes) store(line + j, load_bfloat16(source + j));
            for (int64_t j = full; j < width; ++j) line[j] = widen(source[j]);
        } else {
            const float* source = static_cast<const float*>(from) + start;
            for (int64_t j = 0; j < full; j += kLanes) store(line + j, load(source + j));
            for (int64_t j = full; j < width; ++j) line[j] = source[j];
        }
    }
}

// A row of `width` floats to its place in an array of the inputs' type.
SSMN_APART void unpack_row(int64_t width, const float* from, void* to, int64_t offset, bool half) {
    const int64_t full = width / kLanes * kLanes;
    if (half) {
        uint16_t* target = static_cast<uint16_t*>(to) + offset;
        for (int64_t j = 0; j < full; j += kLanes) store_bfloat16(target + j, load(from + j));
        for (int64_t j = full; j < width; ++j) target[j] = narrow(from[j]);
    } else {
        float* target = static_cast<float*>(to) + offset;
        for (int64_t j = 0; j < full; j += kLanes) store(target + j, load(from + j));
        for (int64_t j = full; j < width; ++j) target[j] = from[j];
    }
}

inline void copy_or_clear(int64_t n, const float* from, int64_t offset, float* to) {
    if (from != nullptr) {
        std::memcpy(to + offset, from + offset, sizeof(float) * static_cast<size_t>(n));
    } else {
        std::memset(to + offset, 0, sizeof(float) * static_cast<size_t>(n));
    }
}

inline void zero_row(int64_t width, void* to, int64_t offset, bool half) {
    const int64_t size = half ? 2 : 4;
    std::memset(static_cast<char*>(to) + offset * size, 0, static_cast<size_t>(width * size));
}

// to = diag(factors) from, in whole vectors.
SSMN_APART void scale_block(
    int64_t n, int64_t whole, const float* factors, const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < whole; j += kLanes)
            store(to + i * to_row + j, load(from + i * from_row + j) * factors[i]);
}

inline void zero_block(int64_t n, int64_t whole, float* to, int64_t to_row) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < whole; j += kLanes) store(to + i * to_row + j, Vec{});
}

// Columns of a dense state [K, V] to and from the workspace.
SSMN_APART void load_state(const Pass& pass, Columns columns, const float* from, float* to) {
    pack(
        pass.key_width, columns.width, from, columns.first, pass.value_width, false, nullptr, to + columns.first,
        pass.value_stride);
}

SSMN_APART void store_state(const Pass& pass, Columns columns, const float* from, float* to) {
    for (int64_t i = 0; i < pass.key_width; ++i)
        unpack_row(
            columns.width, from + i * pass.value_stride + columns.first, to, i * pass.value_width + columns.first,
            false);
}

// The solution X of (I - N) X = X, or of its transpose, in place: x [m, whole], spare [kSolveRows, whole].
SSMN_APART void solve(int64_t m, int64_t whole, const float* factor, float* x, int64_t x_row, float* spare) {
    for (int64_t first = 0; first < m; first += kSolveRows) {
        const int64_t rows = smaller(kSolveRows, m - first);
        float* block = x + first * x_row;
        if (first > 0)
            multiply_all(rows, whole, first, {factor + first * kChunk, kChunk}, x, x_row, {block, x_row, 1.0f});
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < whole; j += kLanes) store(spare + i * whole + j, load(block + i * x_row + j));
        multiply(
            rows, whole, [](int64_t i, int64_t tile) { return Range{0, i + tile}; },
            {factor + first * kChunk + first, kChunk}, spare, whole, {block, x_row});
    }
}

SSMN_APART void solve_transposed(int64_t m, int64_t whole, const float* factor, float* x, int64_t x_row, float* spare) {
    for (int64_t first = (m - 1) / kSolveRows * kSolveRows; first >= 0; first -= kSolveRows) {
        const int64_t rows = smaller(kSolveRows, m - first), last = first + rows;
        float* block = x + first * x_row;
        const Matrix below = Matrix{factor + last * kChunk + first, kChunk}.transposed();
        if (last < m) multiply_all(rows, whole, m - last, below, x + last * x_row, x_row, {block, x_row, 1.0f});
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < whole; j += kLanes) store(spare + i * whole + j, load(block + i * x_row + j));
        multiply(
            rows, whole, [rows](int64_t i, int64_t) { return Range{i, rows}; },
            Matrix{factor + first * kChunk + first, kChunk}.transposed(), spare, whole, {block, x_row});
    }
}

// How many columns of the values a worker takes at a time, so that all have equally much to do. Every column is
// computed by itself: the number cannot change a result.
inline int64_t columns_per_task(const Pass& pass, int64_t lanes, int32_t workers) {
    int64_t blocks = (pass.value_width + kColumns - 1) / kColumns;
    const auto width = [&] { return whole_vectors((pass.value_width + blocks - 1) / blocks); };
    while (width() > kLanes && lanes * blocks % workers != 0 && lanes * blocks < 4 * workers) ++blocks;
    return width();
}

// Workers that go through the same list of phases together, and share out the tasks of each.
struct Crew {
    int32_t workers;
    Barrier* barrier;
    int32_t* taken;  // one counter per phase, zeros at first

    template <typename Task>
    void share(int64_t tasks, const Task& task) {
        if (workers == 1) {
            for (int64_t i = 0; i < tasks; ++i) task(i);
            return;
        }
        for (;;) {
            const int64_t next = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
            if (next >= tasks) break;
            task(next);
        }
        ++taken;
        barrier->wait();
    }
};

// Lanes that are worked on together, and what a worker has to itself.
struct Batch {
    const Pass& pass;
    bool backward;
    int64_t base, lanes;
    char* windows;
    int64_t window_bytes;
    Cursor spare;

    Window window(int64_t i) const {
        Window window{};
        window.place({windows + i * window_bytes}, pass, backward);
        return window;
    }
    Lane lane(int64_t i) const { return {(base + i) / pass.heads, (base + i) % pass.heads}; }
};

// The chunk that a worker will probably prepare after this one: task number `task` of a window that begins at `first`.
struct NextInputs {
    Ahead d_o, k, q;

    NextInputs(const Batch& batch, int64_t first, int64_t task, const void* d_o_array)
        : d_o(rows(batch, first, task, d_o_array, batch.pass.value_width, nullptr)),
          k(rows(batch, first, task, batch.pass.k, batch.pass.key_width, &d_o)),
          q(rows(batch, first, task, batch.pass.q, batch.pass.key_width, &k)) {}

  private:
    static Ahead rows(const Batch& batch, int64_t first, int64_t task, const void* array, int64_t width, Ahead* then) {
        const Lane lane = batch.lane(task % batch.lanes);
        const int64_t t = array == nullptr ? batch.pass.steps : (first + task / batch.lanes) * batch.pass.chunk;
        return batch.pass.ahead(array, width, lane.row, lane.head, t, {0, width}, then);
    }
};

// Calls body(batch, crew) until all lanes are done. If the lanes can be shared out evenly, every worker is a crew of
// its own and takes one lane after the other: no one waits for anyone. Otherwise all workers are one crew, and take as
// many lanes at a time as there is room for. `phases` is how often the body shares out tasks.
template <typename Body>
int32_t run_batches(
    const Pass& pass,
    bool backward,
    int32_t threads,
    double operations,
    int64_t phases,
    int64_t spare_bytes,
    const Body& body) {
    struct Job {
        const Pass& pass;
        const Body& body;
        bool backward, alone;
        int64_t size, counter_bytes, spare_bytes, window_bytes;
        char* memory;

        static void work(const void* context, const Gang& gang, int32_t worker) {
            const Job& job = *static_cast<const Job*>(context);
            int32_t* counters = reinterpret_cast<int32_t*>(job.memory);
            char* own = job.memory + job.counter_bytes + worker * (job.spare_bytes + job.window_bytes);
            if (job.alone) {
                Crew crew{1, nullptr, nullptr};
                for (;;) {
                    const int64_t lane = __atomic_fetch_add(counters, 1, __ATOMIC_RELAXED);
                    if (lane >= job.pass.lanes()) break;
                    job.body(
                        Batch{job.pass, job.backward, lane, 1, own + job.spare_bytes, job.window_bytes, Cursor{own}},
                        crew);
                }
                return;
            }
            Crew crew{gang.workers, gang.barrier, counters};
            own = job.memory + job.counter_bytes + worker * job.spare_bytes;
            char* windows = job.memory + job.counter_bytes + gang.workers * job.spare_bytes;
            for (int64_t base = 0; base < job.pass.lanes(); base += job.size) {
                const int64_t lanes = smaller(job.size, job.pass.lanes() - base);
                job.body(Batch{job.pass, job.backward, base, lanes, windows, job.window_bytes, Cursor{own}}, crew);
            }
        }
    };
    const int64_t lanes = pass.lanes();
    if (lanes == 0 || pass.steps == 0) return SSMN_OK;
    const double useful = 1.0 + operations / kOperationsPerWorker;
    const int32_t workers = useful < threads ? static_cast<int32_t>(useful) : threads;
    const bool alone = lanes % workers == 0 || lanes >= 8 * static_cast<int64_t>(workers);
    const int64_t window_bytes = Window::bytes(pass, backward);
    const int64_t size = alone ? workers : smaller(lanes, larger(kBatchBytes / larger(window_bytes, 1), workers));
    const int64_t batches = alone ? 1 : (lanes + size - 1) / size;
    const int64_t counter_bytes = (batches * phases * static_cast<int64_t>(sizeof(int32_t)) + 63) / 64 * 64;
    const Workspace workspace(counter_bytes + workers * spare_bytes + size * window_bytes);
    if (workspace.data() == nullptr) return SSMN_OUT_OF_MEMORY;
    std::memset(workspace.data(), 0, static_cast<size_t>(counter_bytes));
    const Job job{pass, body, backward, alone, size, counter_bytes, spare_bytes, window_bytes, workspace.data()};
    run_gang(workers, Job::work, &job);
    return SSMN_OK;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

#include "memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "exponential.h"
#include "matrix.h"
#include "parallel.h"
#include "path.h"
#include "ssmn.h"

// Steps are worked on in runs: consecutive steps of one chunk that share one starting state S_0. Within a run of n
// steps, G_i is the sum of log_keep up to and including step i, R_ij = exp(G_i - G_j) for j <= i (no exponent is ever
// positive), K, V, U and Q have one row per step, and
//
//     write   (I - N) U = diag(w) V - diag(e) exp(G) K S_0,   N_ij = -e_i R_ij k_i.k_j for j < i
//     state   S_n = exp(G_n) S_0 + (exp(G_n - G) K)^T U
//     read    O = exp(G) Q S_0 + (R o Q K^T) U
//
// (o is the elementwise product). The backward passes below transpose these three lines.

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Triangular matrices [kChunk, kChunk] are filled and used in blocks of this many rows: row i holds columns up to the
// end of its block, zeros above the diagonal included.
constexpr int64_t kBlock = 16;

struct Run {
    int64_t first;
    int64_t last;
    int32_t begin;
    int64_t length() const { return last - first; }
};

// The run that starts at step `first`; `end` may be null (reads do not care where a stream ends).
Run run_from(const int32_t* begin, const int32_t* end, int64_t first, int64_t limit) {
    int64_t last = first + 1;
    while (last < limit && begin[last] == SSMN_GO_ON && (end == nullptr || end[last - 1] < 0)) ++last;
    return {first, last, begin[first]};
}

struct Decay {
    double total[kChunk];      // G
    float from_start[kChunk];  // exp(G_i)
    float to_end[kChunk];      // exp(G_n - G_i)

    Decay(const float* log_keep, int64_t stride, int64_t n) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; ++i) total[i] = sum += log_keep[i * stride];
        for (int64_t i = 0; i < n; ++i) {
            from_start[i] = exp_nonpositive(static_cast<float>(total[i]));
            to_end[i] = exp_nonpositive(static_cast<float>(sum - total[i]));
        }
    }

    // R below the diagonal, `diagonal` on it, zeros above it. The difference is taken in double precision: after a
    // strong decay G is large, and neighbouring steps still differ by little.
    void ratios(int64_t n, float diagonal, float* ratio) const {
        for (int64_t i = 0; i < n; ++i) {
            float* line = ratio + i * kChunk;
            for (int64_t j = 0; j < i; ++j) line[j] = static_cast<float>(total[i] - total[j]);
            for (int64_t j = 0; j < i; ++j) line[j] = exp_nonpositive(line[j]);
            line[i] = diagonal;
            std::fill(line + i + 1, line + kChunk, 0.0f);
        }
    }
};

// out = the lower triangle of a [n, width] times b^T, where b_transposed is [width, kChunk].
void lower_pairs(int64_t n, int64_t width, const float* a, const float* b_transposed, float* out) {
    for (int64_t i = 0; i < n; i += kBlock) {
        const int64_t end = std::min(n, i + kBlock);
        product(end - i, end, width, {a + i * width, width}, b_transposed, kChunk, out + i * kChunk, kChunk);
    }
}

// out [n, width] += lower x
void add_lower(int64_t n, int64_t width, const float* lower, const float* x, float* out) {
    for (int64_t i = 0; i < n; i += kBlock) {
        const int64_t end = std::min(n, i + kBlock);
        add_product(end - i, width, end, {lower + i * kChunk, kChunk}, x, width, out + i * width, width);
    }
}

// out [n, width] += lower^T x
void add_lower_transposed(int64_t n, int64_t width, const float* lower, const float* x, float* out) {
    for (int64_t j = 0; j < n; j += kBlock) {
        const int64_t end = std::min(n, j + kBlock);
        const Matrix columns = Matrix{lower + j * kChunk + j, kChunk}.transposed();
        add_product(end - j, width, n - j, columns, x + j * width, width, out + j * width, width);
    }
}

// x [n, width] = (I - strict)^-1 x, by blocked substitution: powers of the strict triangle lose all accuracy.
void solve(int64_t n, int64_t width, const float* strict, float* x) {
    for (int64_t i0 = 0; i0 < n; i0 += kBlock) {
        const int64_t end = std::min(n, i0 + kBlock);
        add_product(end - i0, width, i0, {strict + i0 * kChunk, kChunk}, x, width, x + i0 * width, width);
        for (int64_t i = i0 + 1; i < end; ++i)
            for (int64_t j = i0; j < i; ++j) add_scaled(width, strict[i * kChunk + j], x + j * width, x + i * width);
    }
}

// x [n, width] = (I - strict)^-T x
void solve_transposed(int64_t n, int64_t width, const float* strict, float* x) {
    for (int64_t j0 = (n - 1) / kBlock * kBlock; j0 >= 0; j0 -= kBlock) {
        const int64_t end = std::min(n, j0 + kBlock);
        const Matrix columns = Matrix{strict + end * kChunk + j0, kChunk}.transposed();
        add_product(end - j0, width, n - end, columns, x + end * width, width, x + j0 * width, width);
        for (int64_t j = end - 2; j >= j0; --j)
            for (int64_t i = j + 1; i < end; ++i)
                add_scaled(width, strict[i * kChunk + j], x + i * width, x + j * width);
    }
}

// coupling = R o K K^T below the diagonal, and N = -diag(erase) coupling.
void couple(
    int64_t n,
    int64_t key_width,
    const float* keys,
    const float* keys_transposed,
    const float* erase,
    int64_t stride,
    const float* ratio,
    float* coupling,
    float* strict) {
    lower_pairs(n, key_width, keys, keys_transposed, coupling);
    for (int64_t i = 0; i < n; ++i) {
        const float factor = -erase[i * stride];
        const int64_t columns = std::min(n, (i / kBlock + 1) * kBlock);
        for (int64_t j = 0; j < columns; ++j) {
            coupling[i * kChunk + j] *= ratio[i * kChunk + j];
            strict[i * kChunk + j] = factor * coupling[i * kChunk + j];
        }
    }
}

// to [n, width] = diag(factors) from
void scale_rows(int64_t n, int64_t width, const float* factors, const float* from, float* to) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < width; ++j) to[i * width + j] = factors[i] * from[i * width + j];
}

// The sums of t = gradient o value over rows and columns, as they enter dG through R_ij = exp(G_i - G_j).
void add_ratio_gradient(int64_t n, const float* gradient, const float* value, double* d_total) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < i; ++j) {
            const double t = static_cast<double>(gradient[i * kChunk + j]) * value[i * kChunk + j];
            d_total[i] += t;
            d_total[j] -= t;
        }
}

// G is a cumulative sum, so its gradient is summed from the run's end backwards.
void store_log_keep_gradient(int64_t n, const double* d_total, float* d_log_keep, int64_t stride) {
    double sum = 0.0;
    for (int64_t i = n - 1; i >= 0; --i) d_log_keep[i * stride] = static_cast<float>(sum += d_total[i]);
}

struct Workspace {
    float* next;
    float* take(int64_t size) {
        float* taken = next;
        next += size;
        return taken;
    }
};

// Where one (row, head) lies in the arrays of ssmn.h.
struct Lane {
    int64_t steps, heads, key_width, value_width, chunks, row, head;

    Lane(const ssmn_memory_sizes& sizes, int64_t row, int64_t head)
        : steps(sizes.steps),
          heads(sizes.heads),
          key_width(sizes.key_width),
          value_width(sizes.value_width),
          chunks((sizes.steps + kChunk - 1) / kChunk),
          row(row),
          head(head) {}

    int64_t table(int64_t t) const { return row * steps + t; }
    int64_t scalar(int64_t t) const { return table(t) * heads + head; }
    int64_t key(int64_t t) const { return scalar(t) * key_width; }
    int64_t value(int64_t t) const { return scalar(t) * value_width; }
    int64_t state_size() const { return key_width * value_width; }
    int64_t chunk_state(int64_t chunk) const { return ((row * chunks + chunk) * heads + head) * state_size(); }
    int64_t stream_state(int64_t stream) const { return (stream * heads + head) * state_size(); }
    int64_t key_stride() const { return heads * key_width; }
    int64_t value_stride() const { return heads * value_width; }
};

// S = exp(G_n) S + (exp(G_n - G) K)^T U; `scaled` is scratch [n, K].
void advance(
    const Lane& lane, int64_t n, const Decay& decay, const float* keys, const float* u, float* scaled, float* state) {
    scale_rows(n, lane.key_width, decay.to_end, keys, scaled);
    scale(lane.state_size(), decay.from_start[n - 1], state);
    add_product(
        lane.key_width, lane.value_width, n, Matrix{scaled, lane.key_width}.transposed(), u, lane.value_width, state,
        lane.value_width);
}

struct WriteArguments {
    const float *k, *v, *write, *erase, *log_keep;
    const int32_t *begin, *end;
    const float* initial_state;
};

void write_lane(
    const WriteArguments& in,
    const Lane& lane,
    float* u_out,
    float* chunk_states,
    float* final_state,
    float* workspace) {
    const int64_t K = lane.key_width, V = lane.value_width;
    Workspace space{workspace};
    float* state = space.take(lane.state_size());
    float* keys = space.take(kChunk * K);
    float* scaled = space.take(kChunk * K);
    float* keys_transposed = space.take(kChunk * K);
    float* u = space.take(kChunk * V);
    float* recalled = space.take(kChunk * V);
    float* ratio = space.take(kChunk * kChunk);
    float* coupling = space.take(kChunk * kChunk);
    float* strict = space.take(kChunk * kChunk);
    const int32_t* begin = in.begin + lane.table(0);
    const int32_t* end = in.end + lane.table(0);
    const size_t state_bytes = sizeof(float) * lane.state_size();

    std::memset(state, 0, state_bytes);
    for (int64_t chunk = 0; chunk < lane.chunks; ++chunk) {
        std::memcpy(chunk_states + lane.chunk_state(chunk), state, state_bytes);
        const int64_t limit = std::min(lane.steps, (chunk + 1) * kChunk);
        for (Run run{0, chunk * kChunk, 0}; run.last < limit;) {
            run = run_from(begin, end, run.last, limit);
            const int64_t n = run.length(), t = run.first;
            if (run.begin == SSMN_BEGIN_FRESH) std::memset(state, 0, state_bytes);
            if (run.begin >= 0) std::memcpy(state, in.initial_state + lane.stream_state(run.begin), state_bytes);

            const Decay decay(in.log_keep + lane.scalar(t), lane.heads, n);
            gather(n, K, in.k + lane.key(t), lane.key_stride(), keys);
            gather(n, V, in.v + lane.value(t), lane.value_stride(), u);
            for (int64_t i = 0; i < n; ++i) scale(V, in.write[lane.scalar(t + i)], u + i * V);
            if (in.erase != nullptr) {
                const float* erase = in.erase + lane.scalar(t);
                product(n, V, K, {keys, K}, state, V, recalled, V);
                for (int64_t i = 0; i < n; ++i)
                    add_scaled(V, -erase[i * lane.heads] * decay.from_start[i], recalled + i * V, u + i * V);
                if (n > 1) {
                    transpose(n, K, keys, K, keys_transposed, kChunk);
                    decay.ratios(n, 0.0f, ratio);
                    couple(n, K, keys, keys_transposed, erase, lane.heads, ratio, coupling, strict);
                    solve(n, V, strict, u);
                }
            }
            scatter(n, V, u, u_out + lane.value(t), lane.value_stride());
            advance(lane, n, decay, keys, u, scaled, state);
            const int32_t stream = end[run.last - 1];
            if (stream >= 0) std::memcpy(final_state + lane.stream_state(stream), state, state_bytes);
        }
    }
}

struct WriteGradients {
    float *k, *v, *write, *erase, *log_keep, *initial_state;
};

void write_lane_backward(
    const WriteArguments& in,
    const Lane& lane,
    const float* u_in,
    const float* chunk_states,
    const float* d_u_in,
    const float* d_chunk_states,
    const float* d_final_state,
    const WriteGradients& out,
    float* workspace) {
    const int64_t K = lane.key_width, V = lane.value_width;
    Workspace space{workspace};
    float* d_state = space.take(lane.state_size());
    float* replayed = space.take(lane.state_size());
    float* transposed_state = space.take(lane.state_size());
    float* keys = space.take(kChunk * K);
    float* scaled = space.take(kChunk * K);
    float* keys_transposed = space.take(kChunk * K);
    float* d_keys = space.take(kChunk * K);
    float* u = space.take(kChunk * V);
    float* d_u = space.take(kChunk * V);
    float* values = space.take(kChunk * V);
    float* u_transposed = space.take(kChunk * V);
    float* ratio = space.take(kChunk * kChunk);
    float* coupling = space.take(kChunk * kChunk);
    float* strict = space.take(kChunk * kChunk);
    float* d_strict = space.take(kChunk * kChunk);
    const int32_t* begin = in.begin + lane.table(0);
    const int32_t* end = in.end + lane.table(0);
    const size_t state_bytes = sizeof(float) * lane.state_size();

    const auto load = [&](const Run& run) {
        gather(run.length(), K, in.k + lane.key(run.first), lane.key_stride(), keys);
        gather(run.length(), V, u_in + lane.value(run.first), lane.value_stride(), u);
    };

    std::memset(d_state, 0, state_bytes);
    for (int64_t chunk = lane.chunks - 1; chunk >= 0; --chunk) {
        const int64_t limit = std::min(lane.steps, (chunk + 1) * kChunk);
        Run runs[kChunk];
        int64_t count = 0;
        for (int64_t t = chunk * kChunk; t < limit; t = runs[count++].last)
            runs[count] = run_from(begin, end, t, limit);

        // The state before a run, null for zeros. One that goes on from another run of the chunk is replayed.
        const auto state_before = [&](int64_t number) -> const float* {
            int64_t known = number;
            while (known > 0 && runs[known].begin == SSMN_GO_ON) --known;
            const int32_t source = runs[known].begin;
            const float* start = source >= 0                  ? in.initial_state + lane.stream_state(source)
                                 : source == SSMN_BEGIN_FRESH ? nullptr
                                                              : chunk_states + lane.chunk_state(chunk);
            if (known == number) return start;
            if (start == nullptr) {
                std::memset(replayed, 0, state_bytes);
            } else {
                std::memcpy(replayed, start, state_bytes);
            }
            for (int64_t r = known; r < number; ++r) {
                load(runs[r]);
                const Decay decay(in.log_keep + lane.scalar(runs[r].first), lane.heads, runs[r].length());
                advance(lane, runs[r].length(), decay, keys, u, scaled, replayed);
            }
            return replayed;
        };

        for (int64_t number = count - 1; number >= 0; --number) {
            const Run run = runs[number];
            const int64_t n = run.length(), t = run.first;
            const float* start = state_before(number);
            const Decay decay(in.log_keep + lane.scalar(t), lane.heads, n);
            double d_total[kChunk] = {};
            load(run);
            const int32_t stream = end[run.last - 1];
            if (stream >= 0 && d_final_state != nullptr)
                add_scaled(lane.state_size(), 1.0f, d_final_state + lane.stream_state(stream), d_state);

            // S_n = exp(G_n) S_0 + (exp(G_n - G) K)^T U
            product(n, V, K, {keys, K}, d_state, V, d_u, V);
            for (int64_t i = 0; i < n; ++i) {
                const double through = static_cast<double>(decay.to_end[i]) * dot(V, d_u + i * V, u + i * V);
                d_total[n - 1] += through;
                d_total[i] -= through;
                scale(V, decay.to_end[i], d_u + i * V);
                if (d_u_in != nullptr) add_scaled(V, 1.0f, d_u_in + lane.value(t + i), d_u + i * V);
            }
            scale_rows(n, V, decay.to_end, u, values);
            transpose(K, V, d_state, V, transposed_state, K);
            product(n, K, V, {values, V}, transposed_state, K, d_keys, K);
            const float kept = decay.from_start[n - 1];
            if (start != nullptr)
                for (int64_t i = 0; i < K; ++i)
                    d_total[n - 1] += static_cast<double>(kept) * dot(V, d_state + i * V, start + i * V);
            scale(lane.state_size(), kept, d_state);

            // (I - N) U = diag(w) V - diag(e) exp(G) K S_0; from here on d_u is the gradient of the right-hand side.
            if (in.erase != nullptr && n > 1) {
                const float* erase = in.erase + lane.scalar(t);
                transpose(n, K, keys, K, keys_transposed, kChunk);
                transpose(n, V, u, V, u_transposed, kChunk);
                decay.ratios(n, 0.0f, ratio);
                couple(n, K, keys, keys_transposed, erase, lane.heads, ratio, coupling, strict);
                solve_transposed(n, V, strict, d_u);
                lower_pairs(n, V, d_u, u_transposed, d_strict);
                add_ratio_gradient(n, d_strict, strict, d_total);
                for (int64_t i = 0; i < n; ++i) {
                    float* line = d_strict + i * kChunk;
                    out.erase[lane.scalar(t + i)] = -dot(i, line, coupling + i * kChunk);
                    const int64_t columns = std::min(n, (i / kBlock + 1) * kBlock);
                    for (int64_t j = 0; j < columns; ++j) line[j] *= -erase[i * lane.heads] * ratio[i * kChunk + j];
                }
                add_lower(n, K, d_strict, keys, d_keys);
                add_lower_transposed(n, K, d_strict, keys, d_keys);
            } else if (in.erase != nullptr) {
                out.erase[lane.scalar(t)] = 0.0f;
            }
            gather(n, V, in.v + lane.value(t), lane.value_stride(), values);
            for (int64_t i = 0; i < n; ++i) out.write[lane.scalar(t + i)] = dot(V, d_u + i * V, values + i * V);
            for (int64_t i = 0; i < n; ++i) {
                const float strength = in.write[lane.scalar(t + i)];
                float* d_value = out.v + lane.value(t + i);
                for (int64_t j = 0; j < V; ++j) d_value[j] = strength * d_u[i * V + j];
            }
            if (in.erase != nullptr && start != nullptr) {
                float* recalled = values;
                product(n, V, K, {keys, K}, start, V, recalled, V);
                for (int64_t i = 0; i < n; ++i) {
                    const float strength = in.erase[lane.scalar(t + i)], decayed = decay.from_start[i];
                    const float through = dot(V, d_u + i * V, recalled + i * V);
                    out.erase[lane.scalar(t + i)] -= decayed * through;
                    d_total[i] -= static_cast<double>(strength * decayed) * through;
                    scale(V, -strength * decayed, d_u + i * V);  // now the gradient of K S_0
                }
                transpose(K, V, start, V, transposed_state, K);
                add_product(n, K, V, {d_u, V}, transposed_state, K, d_keys, K);
                add_product(K, V, n, Matrix{keys, K}.transposed(), d_u, V, d_state, V);
            }
            scatter(n, K, d_keys, out.k + lane.key(t), lane.key_stride());
            store_log_keep_gradient(n, d_total, out.log_keep + lane.scalar(t), lane.heads);

            if (run.begin >= 0)
                add_scaled(lane.state_size(), 1.0f, d_state, out.initial_state + lane.stream_state(run.begin));
            if (run.begin != SSMN_GO_ON) std::memset(d_state, 0, state_bytes);
        }
        if (d_chunk_states != nullptr)
            add_scaled(lane.state_size(), 1.0f, d_chunk_states + lane.chunk_state(chunk), d_state);
    }
}

struct ReadArguments {
    const float *q, *k, *u, *log_keep;
    const int32_t* begin;
    const float *initial_state, *chunk_states;

    // The state before a run, null for zeros. A run that goes on begins at its chunk's edge.
    const float* state_before(const Lane& lane, int64_t chunk, int32_t begin_at) const {
        if (begin_at == SSMN_BEGIN_FRESH) return nullptr;
        return begin_at >= 0 ? initial_state + lane.stream_state(begin_at) : chunk_states + lane.chunk_state(chunk);
    }
};

void read_chunk(const ReadArguments& in, const Lane& lane, int64_t chunk, float* o_out, float* workspace) {
    const int64_t K = lane.key_width, V = lane.value_width;
    Workspace space{workspace};
    float* queries = space.take(kChunk * K);
    float* keys = space.take(kChunk * K);
    float* keys_transposed = space.take(kChunk * K);
    float* u = space.take(kChunk * V);
    float* o = space.take(kChunk * V);
    float* ratio = space.take(kChunk * kChunk);
    float* pairs = space.take(kChunk * kChunk);
    const int64_t limit = std::min(lane.steps, (chunk + 1) * kChunk);
    for (Run run{0, chunk * kChunk, 0}; run.last < limit;) {
        run = run_from(in.begin + lane.table(0), nullptr, run.last, limit);
        const int64_t n = run.length(), t = run.first;
        const float* start = in.state_before(lane, chunk, run.begin);
        const Decay decay(in.log_keep + lane.scalar(t), lane.heads, n);
        gather(n, K, in.q + lane.key(t), lane.key_stride(), queries);
        gather(n, K, in.k + lane.key(t), lane.key_stride(), keys);
        gather(n, V, in.u + lane.value(t), lane.value_stride(), u);
        std::fill_n(o, n * V, 0.0f);
        if (start != nullptr) {
            add_product(n, V, K, {queries, K}, start, V, o, V);
            scale_rows(n, V, decay.from_start, o, o);
        }
        transpose(n, K, keys, K, keys_transposed, kChunk);
        decay.ratios(n, 1.0f, ratio);
        lower_pairs(n, K, queries, keys_transposed, pairs);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < std::min(n, (i / kBlock + 1) * kBlock); ++j)
                pairs[i * kChunk + j] *= ratio[i * kChunk + j];
        add_lower(n, V, pairs, u, o);
        scatter(n, V, o, o_out + lane.value(t), lane.value_stride());
    }
}

struct ReadGradients {
    float *q, *k, *u, *log_keep, *initial_state, *chunk_states;
};

void read_chunk_backward(
    const ReadArguments& in,
    const Lane& lane,
    int64_t chunk,
    const float* d_o_in,
    const ReadGradients& out,
    float* workspace) {
    const int64_t K = lane.key_width, V = lane.value_width;
    Workspace space{workspace};
    float* transposed_state = space.take(lane.state_size());
    float* queries = space.take(kChunk * K);
    float* keys = space.take(kChunk * K);
    float* keys_transposed = space.take(kChunk * K);
    float* d_queries = space.take(kChunk * K);
    float* d_keys = space.take(kChunk * K);
    float* u = space.take(kChunk * V);
    float* u_transposed = space.take(kChunk * V);
    float* d_u = space.take(kChunk * V);
    float* d_o = space.take(kChunk * V);
    float* ratio = space.take(kChunk * kChunk);
    float* pairs = space.take(kChunk * kChunk);
    float* d_pairs = space.take(kChunk * kChunk);
    const int64_t limit = std::min(lane.steps, (chunk + 1) * kChunk);

    std::fill_n(out.chunk_states + lane.chunk_state(chunk), lane.state_size(), 0.0f);
    for (Run run{0, chunk * kChunk, 0}; run.last < limit;) {
        run = run_from(in.begin + lane.table(0), nullptr, run.last, limit);
        const int64_t n = run.length(), t = run.first;
        const float* start = in.state_before(lane, chunk, run.begin);
        const Decay decay(in.log_keep + lane.scalar(t), lane.heads, n);
        double d_total[kChunk] = {};
        gather(n, K, in.q + lane.key(t), lane.key_stride(), queries);
        gather(n, K, in.k + lane.key(t), lane.key_stride(), keys);
        gather(n, V, in.u + lane.value(t), lane.value_stride(), u);
        gather(n, V, d_o_in + lane.value(t), lane.value_stride(), d_o);

        // (R o Q K^T) U
        transpose(n, K, keys, K, keys_transposed, kChunk);
        transpose(n, V, u, V, u_transposed, kChunk);
        decay.ratios(n, 1.0f, ratio);
        lower_pairs(n, K, queries, keys_transposed, pairs);
        lower_pairs(n, V, d_o, u_transposed, d_pairs);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < std::min(n, (i / kBlock + 1) * kBlock); ++j)
                pairs[i * kChunk + j] *= ratio[i * kChunk + j];
        std::fill_n(d_u, n * V, 0.0f);
        add_lower_transposed(n, V, pairs, d_o, d_u);
        add_ratio_gradient(n, d_pairs, pairs, d_total);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < std::min(n, (i / kBlock + 1) * kBlock); ++j)
                d_pairs[i * kChunk + j] *= ratio[i * kChunk + j];
        std::fill_n(d_queries, n * K, 0.0f);
        std::fill_n(d_keys, n * K, 0.0f);
        add_lower(n, K, d_pairs, keys, d_queries);
        add_lower_transposed(n, K, d_pairs, queries, d_keys);

        // exp(G) Q S_0
        if (start != nullptr) {
            float* d_start = run.begin >= 0 ? out.initial_state + lane.stream_state(run.begin)
                                            : out.chunk_states + lane.chunk_state(chunk);
            scale_rows(n, V, decay.from_start, d_o, d_o);
            add_product(K, V, n, Matrix{queries, K}.transposed(), d_o, V, d_start, V);
            transpose(K, V, start, V, transposed_state, K);
            float* through = keys;
            product(n, K, V, {d_o, V}, transposed_state, K, through, K);
            for (int64_t i = 0; i < n; ++i) d_total[i] += dot(K, through + i * K, queries + i * K);
            add_scaled(n * K, 1.0f, through, d_queries);
        }
        scatter(n, K, d_queries, out.q + lane.key(t), lane.key_stride());
        scatter(n, K, d_keys, out.k + lane.key(t), lane.key_stride());
        scatter(n, V, d_u, out.u + lane.value(t), lane.value_stride());
        store_log_keep_gradient(n, d_total, out.log_keep + lane.scalar(t), lane.heads);
    }
}

// Multiply-adds of one pass over all steps.
double operations(const ssmn_memory_sizes& sizes) {
    const double per_step = 2.0 * sizes.key_width * sizes.value_width + kChunk * (sizes.key_width + sizes.value_width);
    return per_step * sizes.rows * sizes.heads * sizes.steps;
}

}  // namespace

int32_t memory_write(
    const ssmn_memory_sizes* sizes,
    const float* k,
    const float* v,
    const float* write,
    const float* erase,
    const float* log_keep,
    const int32_t* begin,
    const int32_t* end,
    const float* initial_state,
    float* u,
    float* chunk_states,
    float* final_state,
    int32_t threads) {
    const int64_t K = sizes->key_width, V = sizes->value_width;
    std::copy_n(initial_state, sizes->streams * sizes->heads * K * V, final_state);
    const WriteArguments in{k, v, write, erase, log_keep, begin, end, initial_state};
    const int64_t workspace = K * V + kChunk * (3 * K + 2 * V + 3 * kChunk);
    return parallel_for(
        sizes->rows * sizes->heads, threads, operations(*sizes), workspace, [&](int64_t task, float* space) {
            const Lane lane(*sizes, task / sizes->heads, task % sizes->heads);
            write_lane(in, lane, u, chunk_states, final_state, space);
        });
}

int32_t memory_write_backward(
    const ssmn_memory_sizes* sizes,
    const float* k,
    const float* v,
    const float* write,
    const float* erase,
    const float* log_keep,
    const int32_t* begin,
    const int32_t* end,
    const float* initial_state,
    const float* u,
    const float* chunk_states,
    const float* d_u,
    const float* d_chunk_states,
    const float* d_final_state,
    float* d_k,
    float* d_v,
    float* d_write,
    float* d_erase,
    float* d_log_keep,
    float* d_initial_state,
    int32_t threads) {
    const int64_t K = sizes->key_width, V = sizes->value_width, stream_size = sizes->heads * K * V;
    // A stream without steps hands its initial state on.
    if (d_final_state != nullptr) {
        std::copy_n(d_final_state, sizes->streams * stream_size, d_initial_state);
        for (int64_t i = 0; i < sizes->rows * sizes->steps; ++i)
            if (end[i] >= 0) std::fill_n(d_initial_state + end[i] * stream_size, stream_size, 0.0f);
    } else {
        std::fill_n(d_initial_state, sizes->streams * stream_size, 0.0f);
    }
    const WriteArguments in{k, v, write, erase, log_keep, begin, end, initial_state};
    const WriteGradients out{d_k, d_v, d_write, d_erase, d_log_keep, d_initial_state};
    const int64_t workspace = 3 * K * V + kChunk * (4 * K + 4 * V + 4 * kChunk);
    return parallel_for(
        sizes->rows * sizes->heads, threads, 3.0 * operations(*sizes), workspace, [&](int64_t task, float* space) {
            const Lane lane(*sizes, task / sizes->heads, task % sizes->heads);
            write_lane_backward(in, lane, u, chunk_states, d_u, d_chunk_states, d_final_state, out, space);
        });
}

int32_t memory_read(
    const ssmn_memory_sizes* sizes,
    const float* q,
    const float* k,
    const float* u,
    const float* log_keep,
    const int32_t* begin,
    const float* initial_state,
    const float* chunk_states,
    float* o,
    int32_t threads) {
    const int64_t K = sizes->key_width, V = sizes->value_width;
    const int64_t chunks = (sizes->steps + kChunk - 1) / kChunk;
    const ReadArguments in{q, k, u, log_keep, begin, initial_state, chunk_states};
    const int64_t workspace = kChunk * (3 * K + 2 * V + 2 * kChunk);
    return parallel_for(
        sizes->rows * chunks * sizes->heads, threads, operations(*sizes), workspace, [&](int64_t task, float* space) {
            const Lane lane(*sizes, task / (chunks * sizes->heads), task % sizes->heads);
            read_chunk(in, lane, task / sizes->heads % chunks, o, space);
        });
}

int32_t memory_read_backward(
    const ssmn_memory_sizes* sizes,
    const float* q,
    const float* k,
    const float* u,
    const float* log_keep,
    const int32_t* begin,
    const float* initial_state,
    const float* chunk_states,
    const float* d_o,
    float* d_q,
    float* d_k,
    float* d_u,
    float* d_log_keep,
    float* d_initial_state,
    float* d_chunk_states,
    int32_t threads) {
    const int64_t K = sizes->key_width, V = sizes->value_width;
    const int64_t chunks = (sizes->steps + kChunk - 1) / kChunk;
    std::fill_n(d_initial_state, sizes->streams * sizes->heads * K * V, 0.0f);
    const ReadArguments in{q, k, u, log_keep, begin, initial_state, chunk_states};
    const ReadGradients out{d_q, d_k, d_u, d_log_keep, d_initial_state, d_chunk_states};
    const int64_t workspace = K * V + kChunk * (5 * K + 4 * V + 3 * kChunk);
    return parallel_for(
        sizes->rows * chunks * sizes->heads, threads, 3.0 * operations(*sizes), workspace,
        [&](int64_t task, float* space) {
            const Lane lane(*sizes, task / (chunks * sizes->heads), task % sizes->heads);
            read_chunk_backward(in, lane, task / sizes->heads % chunks, d_o, out, space);
        });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

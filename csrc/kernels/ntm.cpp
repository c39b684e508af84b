// The Neural Turing Machine: controller, heads and memory, step after step (Graves et al., 2014, equations 2 to 9).
// A task is a stream. Memories are stored by columns, [M, N], so that every loop over them runs along the rows.
#include <cmath>

#include "parallel.h"
#include "path.h"
#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// As in ssmn/relatives/ntm.py, which explains them.
constexpr float kLengthEps = 1e-3f;
constexpr float kWeightEps = 1e-12f;

// y = function(x) for n floats.
template <typename Function>
inline void for_all(int64_t n, const float* x, float* y, const Function& function) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, function(load(x + i)));
    if (i < n) store_part(y + i, function(load_part(x + i, n - i)), n - i);
}

inline float sum(int64_t n, const float* x) {
    float total = 0.0f;
    for (int64_t i = 0; i < n; ++i) total += x[i];
    return total;
}

inline void copy(int64_t n, const float* x, float* y) {
    if (n > 0) std::memcpy(y, x, sizeof(float) * static_cast<size_t>(n));
}

inline void clear(int64_t n, float* x) {
    for (int64_t i = 0; i < n; ++i) x[i] = 0.0f;
}

// x *= 1 - share * weights
inline void erase(int64_t n, float share, const float* weights, float* x) {
    for (int64_t i = 0; i < n; ++i) x[i] -= x[i] * (share * weights[i]);
}

SSMN_INLINE Vec tanh_of(Vec x) {
    const Vec e = exp_nonpositive(maximum(x, -x) * -2.0f), y = (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -y : y;
}

SSMN_INLINE Vec logistic_of(Vec x) {
    const Vec e = exp_nonpositive(-maximum(x, -x));
    return (x < 0.0f ? e : broadcast(1.0f)) / (1.0f + e);
}

inline float softplus_of(float x) {
    return (x > 0.0f ? x : 0.0f) + std::log1p(std::exp(-std::fabs(x)));
}

inline void softmax(int64_t n, const float* x, float* y) {
    float most = x[0];
    for (int64_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
    for_all(n, x, y, [most](Vec v) { return exp_nonpositive(v - most); });
    scale(n, 1.0f / sum(n, y), y);
}

// Where a head's numbers are among those of the controller.
struct Layout {
    int64_t rows, width, read_heads, write_heads, heads, moves, keys, adds, erases, gates, strengths, sharpenings,
        shifts, all;

    explicit Layout(const ssmn_ntm_call& call)
        : rows(call.slots),
          width(call.width),
          read_heads(call.read_heads),
          write_heads(call.write_heads),
          heads(call.read_heads + call.write_heads),
          moves(2 * call.shift_range + 1),
          keys(0),
          adds(heads * width),
          erases(adds + call.write_heads * width),
          gates(erases + call.write_heads * width),
          strengths(gates + heads),
          sharpenings(strengths + heads),
          shifts(sharpenings + heads),
          all(shifts + heads * moves) {}

    // The row that move `move` takes row 0 to.
    int64_t target(int64_t move) const {
        const int64_t row = (move - moves / 2) % rows;
        return row < 0 ? row + rows : row;
    }

    int64_t memory_size() const { return rows * width; }
    int64_t weights_size() const { return rows * heads; }

    // In place: what the controller emits, through its activations.
    void activate(float* x) const {
        for_all(erases, x, x, tanh_of);
        for_all(strengths - erases, x + erases, x + erases, logistic_of);
        for (int64_t i = strengths; i < sharpenings; ++i) x[i] = softplus_of(x[i]);
        for (int64_t i = sharpenings; i < shifts; ++i) x[i] = 1.0f + softplus_of(x[i]);
        for (int64_t i = shifts; i < all; i += moves) softmax(moves, x + i, x + i);
    }

    // In place: d is the gradient of `active`, and becomes that of what was emitted.
    void deactivate(const float* active, float* d) const {
        for (int64_t i = 0; i < erases; ++i) d[i] *= 1.0f - active[i] * active[i];
        for (int64_t i = erases; i < strengths; ++i) d[i] *= active[i] * (1.0f - active[i]);
        // The slope of softplus is 1 - exp(-softplus).
        for (int64_t i = strengths; i < sharpenings; ++i) d[i] *= -std::expm1(-active[i]);
        for (int64_t i = sharpenings; i < shifts; ++i) d[i] *= -std::expm1(1.0f - active[i]);
        for (int64_t i = shifts; i < all; i += moves) {
            const float mean = dot(moves, active + i, d + i);
            for (int64_t j = i; j < i + moves; ++j) d[j] = active[j] * (d[j] - mean);
        }
    }

    // 1 / |row|, for all rows.
    void measure(const float* memory, float* of_rows) const {
        for (int64_t n = 0; n < rows; ++n) of_rows[n] = kLengthEps;
        for (int64_t m = 0; m < width; ++m) {
            const float* column = memory + m * rows;
            for (int64_t n = 0; n < rows; ++n) of_rows[n] += column[n] * column[n];
        }
        for (int64_t n = 0; n < rows; ++n) of_rows[n] = 1.0f / std::sqrt(of_rows[n]);
    }
};

// A head's way to its new weights, [N] each; `of_key` is 1 / |key|.
struct Way {
    float *product, *content, *mixed, *moved, *logarithm;
    float of_key;

    static constexpr int64_t kArrays = 5;

    Way(int64_t rows, float* space)
        : product(space),
          content(space + rows),
          mixed(space + 2 * rows),
          moved(space + 3 * rows),
          logarithm(space + 4 * rows),
          of_key(0.0f) {}

    // Everything before the last softmax.
    void go(
        const Layout& at,
        const float* active,
        int64_t head,
        const float* memory,
        const float* of_rows,
        const float* before) {
        const float* key = active + at.keys + head * at.width;
        of_key = 1.0f / std::sqrt(dot(at.width, key, key) + kLengthEps);
        clear(at.rows, product);
        for (int64_t m = 0; m < at.width; ++m) add_scaled(at.rows, key[m], memory + m * at.rows, product);
        const float factor = active[at.strengths + head] * of_key;
        for (int64_t n = 0; n < at.rows; ++n) moved[n] = factor * product[n] * of_rows[n];
        softmax(at.rows, moved, content);
        const float gate = active[at.gates + head], rest = 1.0f - gate;
        for (int64_t n = 0; n < at.rows; ++n) mixed[n] = gate * content[n] + rest * before[n];
        clear(at.rows, moved);
        for (int64_t move = 0; move < at.moves; ++move) {
            const int64_t to = at.target(move);
            const float share = active[at.shifts + head * at.moves + move];
            add_scaled(at.rows - to, share, mixed, moved + to);
            add_scaled(to, share, mixed + at.rows - to, moved);
        }
        for_all(at.rows, moved, logarithm, [](Vec x) { return log_positive(x + kWeightEps); });
    }
};

// Where a step comes from and goes to.
struct Step {
    const float *memory, *weights;  // before
    float *placed, *written, *read;

    void run(const Layout& at, const float* active, bool frozen, float* space) const {
        const int64_t N = at.rows, M = at.width;
        float* const of_rows = space;
        Way way(N, of_rows + N);
        at.measure(memory, of_rows);
        for (int64_t head = 0; head < at.heads; ++head) {
            way.go(at, active, head, memory, of_rows, weights + head * N);
            scale(N, active[at.sharpenings + head], way.logarithm);
            softmax(N, way.logarithm, placed + head * N);
        }
        if (written != memory) copy(at.memory_size(), memory, written);
        for (int64_t m = 0; m < M; ++m) {
            float* const column = written + m * N;
            for (int64_t writer = 0; writer < at.write_heads && !frozen; ++writer)
                erase(N, active[at.erases + writer * M + m], placed + (at.read_heads + writer) * N, column);
            for (int64_t writer = 0; writer < at.write_heads && !frozen; ++writer)
                add_scaled(N, active[at.adds + writer * M + m], placed + (at.read_heads + writer) * N, column);
            for (int64_t head = 0; head < at.read_heads; ++head) read[head * M + m] = dot(N, placed + head * N, column);
        }
    }

    static int64_t space(const Layout& at) { return (1 + Way::kArrays) * at.rows; }
};

// The way back through a step.
struct StepBack {
    const float *memory, *weights, *placed, *written;
    // In: the gradients of the memory and of the weights after the step; out: before it.
    float *d_memory, *d_weights;

    // `d_read` comes in, `d` goes out: the gradient of `active`.
    void run(const Layout& at, const float* active, bool frozen, const float* d_read, float* d, float* space) const {
        const int64_t N = at.rows, M = at.width, W = frozen ? 0 : at.write_heads;
        float *const of_rows = space, *const d_of_rows = of_rows + N, *const gradient = d_of_rows + N;
        float* const other = gradient + N;
        Way way(N, other + N);
        at.measure(memory, of_rows);
        clear(N, d_of_rows);
        if (frozen) clear(at.gates - at.adds, d + at.adds);
        for (int64_t m = 0; m < M; ++m) {
            float* const column = d_memory + m * N;
            for (int64_t head = 0; head < at.read_heads; ++head) {
                add_scaled(N, d_read[head * M + m], written + m * N, d_weights + head * N);
                add_scaled(N, d_read[head * M + m], placed + head * N, column);
            }
            for (int64_t writer = 0; writer < W; ++writer) {
                const int64_t add = at.adds + writer * M + m, head = at.read_heads + writer;
                d[add] = dot(N, placed + head * N, column);
                add_scaled(N, active[add], column, d_weights + head * N);
                for (int64_t n = 0; n < N; ++n) other[n] = -memory[m * N + n] * column[n];
                for (int64_t second = 0; second < W; ++second)
                    if (second != writer)
                        erase(N, active[at.erases + second * M + m], placed + (at.read_heads + second) * N, other);
                d[at.erases + writer * M + m] = dot(N, placed + head * N, other);
                add_scaled(N, active[at.erases + writer * M + m], other, d_weights + head * N);
            }
            for (int64_t writer = 0; writer < W; ++writer)
                erase(N, active[at.erases + writer * M + m], placed + (at.read_heads + writer) * N, column);
        }
        for (int64_t head = 0; head < at.heads; ++head) {
            const float *before = weights + head * N, *place = placed + head * N;
            float* const d_place = d_weights + head * N;
            way.go(at, active, head, memory, of_rows, before);
            const float mean = dot(N, place, d_place);
            for (int64_t n = 0; n < N; ++n) d_place[n] = place[n] * (d_place[n] - mean);
            d[at.sharpenings + head] = dot(N, d_place, way.logarithm);
            const float sharpening = active[at.sharpenings + head];
            for (int64_t n = 0; n < N; ++n) d_place[n] = sharpening * d_place[n] / (way.moved[n] + kWeightEps);
            clear(N, gradient);
            for (int64_t move = 0; move < at.moves; ++move) {
                const int64_t to = at.target(move), index = at.shifts + head * at.moves + move;
                d[index] = dot(N - to, way.mixed, d_place + to) + dot(to, way.mixed + N - to, d_place);
                add_scaled(N - to, active[index], d_place + to, gradient);
                add_scaled(to, active[index], d_place, gradient + N - to);
            }
            const float gate = active[at.gates + head], rest = 1.0f - gate;
            for (int64_t n = 0; n < N; ++n) other[n] = way.content[n] - before[n];
            d[at.gates + head] = dot(N, gradient, other);
            for (int64_t n = 0; n < N; ++n) d_place[n] = rest * gradient[n];
            const float centre = dot(N, way.content, gradient);
            for (int64_t n = 0; n < N; ++n) gradient[n] = gate * way.content[n] * (gradient[n] - centre);
            // From here `gradient` is that of the scores, strength * of_key * of_rows * product.
            const float strength = active[at.strengths + head], factor = strength * way.of_key;
            for (int64_t n = 0; n < N; ++n) {
                const float scaled = gradient[n] * way.product[n];
                d_of_rows[n] += factor * scaled;
                other[n] = scaled * of_rows[n];
                gradient[n] *= factor * of_rows[n];
            }
            const float total = sum(N, other);
            d[at.strengths + head] = way.of_key * total;
            const float through_length = -strength * total * way.of_key * way.of_key * way.of_key;
            const float* key = active + at.keys + head * M;
            for (int64_t m = 0; m < M; ++m) {
                d[at.keys + head * M + m] = dot(N, gradient, memory + m * N) + through_length * key[m];
                add_scaled(N, key[m], gradient, d_memory + m * N);
            }
        }
        for (int64_t n = 0; n < N; ++n) d_of_rows[n] *= -of_rows[n] * of_rows[n] * of_rows[n];
        for (int64_t m = 0; m < M; ++m)
            for (int64_t n = 0; n < N; ++n) d_memory[m * N + n] += d_of_rows[n] * memory[m * N + n];
    }

    static int64_t space(const Layout& at) { return (4 + Way::kArrays) * at.rows; }
};

// y += x W for a matrix [inputs, outputs].
inline void forwards(int64_t inputs, int64_t outputs, const float* x, const float* matrix, float* y) {
    int64_t i = 0;
    for (; i + 4 <= inputs; i += 4) {
        const float *a = matrix + i * outputs, *b = a + outputs, *c = b + outputs, *d = c + outputs;
        const float p = x[i], q = x[i + 1], r = x[i + 2], s = x[i + 3];
        int64_t o = 0;
        for (; o + kLanes <= outputs; o += kLanes)
            store(y + o, load(y + o) + p * load(a + o) + q * load(b + o) + r * load(c + o) + s * load(d + o));
        for (; o < outputs; ++o) y[o] += p * a[o] + q * b[o] + r * c[o] + s * d[o];
    }
    for (; i < inputs; ++i) add_scaled(outputs, x[i], matrix + i * outputs, y);
}

// x += W y
inline void backwards(int64_t inputs, int64_t outputs, const float* y, const float* matrix, float* x) {
    for (int64_t i = 0; i < inputs; ++i) x[i] += dot(outputs, y, matrix + i * outputs);
}

inline bool is_set(const uint8_t* flags, int64_t t, bool otherwise) {
    return flags == nullptr ? otherwise : flags[t] != 0;
}

// The controller: an LSTM with the gates in, keep, out, new, or tanh alone. `gates` go through their activations.
struct Controller {
    int64_t width;
    bool is_lstm;

    int64_t gates() const { return is_lstm ? 4 * width : width; }
    int64_t carried() const { return is_lstm ? width : 0; }

    void run(float* gates, const float* cell, float* new_cell, float* control) const {
        if (!is_lstm) {
            for_all(width, gates, gates, tanh_of);
            copy(width, gates, control);
            return;
        }
        for_all(3 * width, gates, gates, logistic_of);
        for_all(width, gates + 3 * width, gates + 3 * width, tanh_of);
        const float *into = gates, *keep = into + width, *out = keep + width, *fresh = out + width;
        for (int64_t i = 0; i < width; ++i) new_cell[i] = keep[i] * cell[i] + into[i] * fresh[i];
        for_all(width, new_cell, control, tanh_of);
        for (int64_t i = 0; i < width; ++i) control[i] *= out[i];
    }

    // `d_cell`: in, that of the cell after the step; out, before it. `d_gates` is that before the activations.
    void back(
        const float* gates,
        const float* cell,
        const float* new_cell,
        const float* d_control,
        float* d_cell,
        float* d_gates) const {
        if (!is_lstm) {
            for (int64_t i = 0; i < width; ++i) d_gates[i] = d_control[i] * (1.0f - gates[i] * gates[i]);
            return;
        }
        const float *into = gates, *keep = into + width, *out = keep + width, *fresh = out + width;
        float *const d_into = d_gates, *const d_keep = d_into + width, *const d_out = d_keep + width;
        float* const d_fresh = d_out + width;
        for_all(width, new_cell, d_out, tanh_of);
        for (int64_t i = 0; i < width; ++i) {
            const float bounded = d_out[i];
            const float d = d_cell[i] + d_control[i] * out[i] * (1.0f - bounded * bounded);
            d_out[i] = d_control[i] * bounded * out[i] * (1.0f - out[i]);
            d_into[i] = d * fresh[i] * into[i] * (1.0f - into[i]);
            d_keep[i] = d * cell[i] * keep[i] * (1.0f - keep[i]);
            d_fresh[i] = d * into[i] * (1.0f - fresh[i] * fresh[i]);
            d_cell[i] = d * keep[i];
        }
    }
};

// Sizes of a call.
struct Sizes {
    Layout at;
    Controller controller;
    int64_t steps, memory, weights, read, gates, carried;

    explicit Sizes(const ssmn_ntm_call& call)
        : at(call),
          controller{call.controls, call.is_lstm != 0},
          steps(call.steps),
          memory(at.rows * at.width),
          weights(at.rows * at.heads),
          read(at.read_heads * at.width),
          gates(controller.gates()),
          carried(controller.carried()) {}

    // A fresh state: every head on row 0, and behind that as many zeros as any part of a state has numbers.
    int64_t fresh() const { return weights + larger(larger(memory, weights), larger(carried, read)); }

    void make_fresh(float* x) const {
        clear(fresh(), x);
        for (int64_t head = 0; head < at.heads; ++head) x[head * at.rows] = 1.0f;
    }

    double operations(int64_t streams) const {
        const int64_t controls = controller.width, each = (read + carried) * gates + controls * at.all;
        return static_cast<double>(streams * steps) *
               static_cast<double>(each + (2 * at.heads + 2) * memory + 40 * weights);
    }
};

// A part of the state of one stream: at the start, and after each step. Without a trace it is in one place, the last.
struct Part {
    int64_t size;
    const float* start;
    float *trace, *last;

    Part(int64_t size, int64_t stream, int64_t steps, const float* start, float* trace, float* last)
        : size(size),
          start(start + stream * size),
          trace(trace == nullptr ? nullptr : trace + stream * steps * size),
          last(last == nullptr ? nullptr : last + stream * size) {}

    const float* before(int64_t t) const { return t == 0 ? start : after(t - 1); }
    float* after(int64_t t) const { return trace == nullptr ? last : trace + t * size; }

    void keep(int64_t t, const float* past) const {
        if (after(t) != past) copy(size, past, after(t));
    }

    void finish(int64_t steps) const {
        if (last != nullptr && before(steps) != last) copy(size, before(steps), last);
    }
};

}  // namespace

int32_t ntm(
    const ssmn_ntm_call* call,
    const float* driven,
    const float* recurrent,
    const float* emit,
    const float* emit_bias,
    const uint8_t* mask,
    const uint8_t* reset,
    const float* memory,
    const float* weighting,
    const float* hidden,
    const float* cell,
    const float* read,
    float* controls,
    float* reads,
    float* final_memory,
    float* final_weighting,
    float* final_cell,
    float* memories,
    float* weightings,
    float* cells,
    float* gates,
    float* active,
    int32_t threads) {
    const Sizes sizes(*call);
    const Layout& at = sizes.at;
    const Controller& controller = sizes.controller;
    const int64_t T = sizes.steps, C = controller.width;
    const int64_t space_size = sizes.fresh() + sizes.gates + at.all + Step::space(at);
    return parallel_for(
        call->streams, threads, sizes.operations(call->streams), space_size, [&](int64_t n, float* space) {
            float *const fresh = space, *const own_gates = fresh + sizes.fresh(),
                         *const own_active = own_gates + sizes.gates;
            const float* nothing = fresh + sizes.weights;
            sizes.make_fresh(fresh);
            const Part memory_part(sizes.memory, n, T, memory, memories, final_memory);
            const Part weights_part(sizes.weights, n, T, weighting, weightings, final_weighting);
            const Part cell_part(sizes.carried, n, T, cell, cells, final_cell);
            const Part hidden_part(sizes.carried, n, T, hidden, controls, nullptr);
            const Part read_part(sizes.read, n, T, read, reads, nullptr);
            for (int64_t t = 0; t < T; ++t) {
                const int64_t now = n * T + t;
                const bool is_fresh = is_set(reset, now, false);
                const float* past_memory = is_fresh ? nothing : memory_part.before(t);
                const float* past_weights = is_fresh ? fresh : weights_part.before(t);
                const float* past_cell = is_fresh ? nothing : cell_part.before(t);
                const float* past_hidden = is_fresh ? nothing : hidden_part.before(t);
                const float* past_read = is_fresh ? nothing : read_part.before(t);
                float* const gate = gates == nullptr ? own_gates : gates + now * sizes.gates;
                float* const emitted = active == nullptr ? own_active : active + now * at.all;
                float* const control = controls + now * C;
                if (!is_set(mask, now, true)) {
                    memory_part.keep(t, past_memory);
                    weights_part.keep(t, past_weights);
                    cell_part.keep(t, past_cell);
                    read_part.keep(t, past_read);
                    if (controller.is_lstm)
                        hidden_part.keep(t, past_hidden);
                    else
                        clear(C, control);
                    clear(sizes.gates, gate);
                    clear(at.all, emitted);
                    continue;
                }
                copy(sizes.gates, driven + now * sizes.gates, gate);
                forwards(sizes.read, sizes.gates, past_read, recurrent, gate);
                forwards(sizes.carried, sizes.gates, past_hidden, recurrent + sizes.read * sizes.gates, gate);
                controller.run(gate, past_cell, cell_part.after(t), control);
                copy(at.all, emit_bias, emitted);
                forwards(C, at.all, control, emit, emitted);
                at.activate(emitted);
                const Step step{
                    past_memory, past_weights, weights_part.after(t), memory_part.after(t), read_part.after(t)};
                step.run(at, emitted, call->frozen != 0, own_active + at.all);
            }
            memory_part.finish(T);
            weights_part.finish(T);
            cell_part.finish(T);
        });
}

int32_t ntm_backward(
    const ssmn_ntm_call* call,
    const float* recurrent,
    const float* emit,
    const uint8_t* mask,
    const uint8_t* reset,
    const float* memory,
    const float* weighting,
    const float* cell,
    const float* memories,
    const float* weightings,
    const float* cells,
    const float* gates,
    const float* active,
    const float* d_controls,
    const float* d_reads,
    float* d_driven,
    float* d_emitted,
    float* d_memory,
    float* d_weighting,
    float* d_cell,
    float* d_hidden,
    float* d_read,
    int32_t threads) {
    const Sizes sizes(*call);
    const Layout& at = sizes.at;
    const Controller& controller = sizes.controller;
    const int64_t T = sizes.steps, C = controller.width;
    const int64_t space_size = sizes.fresh() + C + StepBack::space(at);
    const double operations = 3.0 * sizes.operations(call->streams);
    return parallel_for(call->streams, threads, operations, space_size, [&](int64_t n, float* space) {
        float *const fresh = space, *const d_control = fresh + sizes.fresh();
        const float* nothing = fresh + sizes.weights;
        sizes.make_fresh(fresh);
        const Part memory_part(sizes.memory, n, T, memory, const_cast<float*>(memories), nullptr);
        const Part weights_part(sizes.weights, n, T, weighting, const_cast<float*>(weightings), nullptr);
        const Part cell_part(sizes.carried, n, T, cell, const_cast<float*>(cells), nullptr);
        // The gradients of the state, from the last step's to the first one's.
        float *const of_memory = d_memory + n * sizes.memory, *const of_weights = d_weighting + n * sizes.weights;
        float *const of_cell = d_cell + n * sizes.carried, *const of_hidden = d_hidden + n * sizes.carried;
        float* const of_read = d_read + n * sizes.read;
        clear(sizes.carried, of_hidden);
        clear(sizes.read, of_read);
        for (int64_t t = T - 1; t >= 0; --t) {
            const int64_t now = n * T + t;
            const bool is_fresh = is_set(reset, now, false);
            float *const of_drive = d_driven + now * sizes.gates, *const of_emitted = d_emitted + now * at.all;
            add_scaled(sizes.read, 1.0f, d_reads + now * sizes.read, of_read);
            add_scaled(sizes.carried, 1.0f, d_controls + now * C, of_hidden);
            if (is_set(mask, now, true)) {
                const float* past_cell = is_fresh ? nothing : cell_part.before(t);
                const StepBack step{
                    is_fresh ? nothing : memory_part.before(t),
                    is_fresh ? fresh : weights_part.before(t),
                    weights_part.after(t),
                    memory_part.after(t),
                    of_memory,
                    of_weights};
                step.run(at, active + now * at.all, call->frozen != 0, of_read, of_emitted, d_control + C);
                at.deactivate(active + now * at.all, of_emitted);
                copy(C, controller.is_lstm ? of_hidden : d_controls + now * C, d_control);
                backwards(C, at.all, of_emitted, emit, d_control);
                controller.back(gates + now * sizes.gates, past_cell, cell_part.after(t), d_control, of_cell, of_drive);
                clear(sizes.read, of_read);
                clear(sizes.carried, of_hidden);
                backwards(sizes.read, sizes.gates, of_drive, recurrent, of_read);
                backwards(sizes.carried, sizes.gates, of_drive, recurrent + sizes.read * sizes.gates, of_hidden);
            } else {
                clear(sizes.gates, of_drive);
                clear(at.all, of_emitted);
            }
            if (is_fresh) {
                clear(sizes.memory, of_memory);
                clear(sizes.weights, of_weights);
                clear(sizes.carried, of_cell);
                clear(sizes.carried, of_hidden);
                clear(sizes.read, of_read);
            }
        }
    });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

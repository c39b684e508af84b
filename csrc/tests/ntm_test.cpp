// The Neural Turing Machine and its gradients against the equations in double.
#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

struct Case {
    std::string name;
    ssmn_ntm_call call;
    bool has_mask = false, has_reset = false;
    int32_t threads = 1;
};

struct Problem {
    Numbers driven, recurrent, emit, emit_bias, memory, weighting, hidden, cell, read;
    std::vector<uint8_t> mask, reset;
};

struct Outcome {
    Numbers controls, reads, memory, weighting, cell;
};

double logistic(double x) {
    return 1.0 / (1.0 + std::exp(-x));
}

double softplus(double x) {
    return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}

Numbers softmax(Numbers x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0.0;
    for (double& value : x) sum += value = std::exp(value - most);
    for (double& value : x) value /= sum;
    return x;
}

// Row `row` of a matrix whose rows have `size` numbers.
Numbers row_of(const Numbers& matrix, int64_t row, int64_t size) {
    return Numbers(matrix.begin() + row * size, matrix.begin() + (row + 1) * size);
}

void append(Numbers& to, const Numbers& from) {
    to.insert(to.end(), from.begin(), from.end());
}

// A head's new weights: content, interpolation, shift, sharpening.
Numbers place(
    const ssmn_ntm_call& call, int64_t head, const Numbers& emitted, const Numbers& memory, const Numbers& weights) {
    const int64_t N = call.slots, M = call.width, W = call.write_heads, H = call.read_heads + W;
    const int64_t S = 2 * call.shift_range + 1;
    const double *before = weights.data() + head * N, *keys = emitted.data() + head * M;
    const double* gates = emitted.data() + H * M + 2 * W * M;
    const double gate = logistic(gates[head]), strength = softplus(gates[H + head]);
    double of_key = 1e-3;
    for (int64_t m = 0; m < M; ++m) of_key += std::pow(std::tanh(keys[m]), 2);
    Numbers scores(N), moved(N, 0.0);
    for (int64_t n = 0; n < N; ++n) {
        double product = 0.0, of_row = 1e-3;
        for (int64_t m = 0; m < M; ++m) {
            product += std::tanh(keys[m]) * memory[m * N + n];
            of_row += memory[m * N + n] * memory[m * N + n];
        }
        scores[n] = strength * product / std::sqrt(of_key * of_row);
    }
    const Numbers content = softmax(scores);
    const double* moves = gates + 3 * H + head * S;
    const Numbers shares = softmax(Numbers(moves, moves + S));
    for (int64_t n = 0; n < N; ++n)
        for (int64_t s = 0; s < S; ++s) {
            const int64_t to = n + s - call.shift_range;
            moved[((to % N) + N) % N] += shares[s] * (gate * content[n] + (1.0 - gate) * before[n]);
        }
    for (double& value : moved) value = (1.0 + softplus(gates[2 * H + head])) * std::log(value + 1e-12);
    return softmax(moved);
}

// The controller's output; `cell` goes on.
Numbers control_of(const ssmn_ntm_call& call, const Numbers& gates, Numbers& cell) {
    const int64_t C = call.controls;
    Numbers control(C);
    for (int64_t i = 0; i < C; ++i) {
        if (!call.is_lstm) {
            control[i] = std::tanh(gates[i]);
            continue;
        }
        cell[i] = logistic(gates[C + i]) * cell[i] + logistic(gates[i]) * std::tanh(gates[3 * C + i]);
        control[i] = logistic(gates[2 * C + i]) * std::tanh(cell[i]);
    }
    return control;
}

// y + x W
Numbers product(const Numbers& x, const double* matrix, Numbers y) {
    for (size_t i = 0; i < x.size(); ++i)
        for (size_t o = 0; o < y.size(); ++o) y[o] += x[i] * matrix[i * y.size() + o];
    return y;
}

Outcome walk(const Case& c, const Problem& p) {
    const ssmn_ntm_call& call = c.call;
    const int64_t T = call.steps, N = call.slots, M = call.width, C = call.controls;
    const int64_t R = call.read_heads, W = call.write_heads, H = R + W;
    const int64_t G = call.is_lstm ? 4 * C : C, carried = call.is_lstm ? C : 0;
    Outcome out;
    for (int64_t b = 0; b < call.streams; ++b) {
        Numbers memory = row_of(p.memory, b, M * N), weights = row_of(p.weighting, b, H * N);
        Numbers hidden = row_of(p.hidden, b, carried), cell = row_of(p.cell, b, carried),
                read = row_of(p.read, b, R * M);
        for (int64_t t = 0; t < T; ++t) {
            if (p.reset[b * T + t]) {
                for (Numbers* part : {&memory, &weights, &hidden, &cell, &read})
                    std::fill(part->begin(), part->end(), 0.0);
                for (int64_t h = 0; h < H; ++h) weights[h * N] = 1.0;
            }
            if (!p.mask[b * T + t]) {
                append(out.controls, call.is_lstm ? hidden : Numbers(C, 0.0));
                append(out.reads, read);
                continue;
            }
            Numbers gates = product(read, p.recurrent.data(), row_of(p.driven, b * T + t, G));
            gates = product(hidden, p.recurrent.data() + R * M * G, gates);
            const Numbers control = control_of(call, gates, cell);
            if (call.is_lstm) hidden = control;
            const Numbers emitted = product(control, p.emit.data(), p.emit_bias);
            Numbers placed;
            for (int64_t h = 0; h < H; ++h) append(placed, place(call, h, emitted, memory, weights));
            weights = placed;
            const double *adds = emitted.data() + H * M, *erases = adds + W * M;
            std::fill(read.begin(), read.end(), 0.0);
            for (int64_t m = 0; m < M; ++m)
                for (int64_t n = 0; n < N; ++n) {
                    double& value = memory[m * N + n];
                    for (int64_t w = 0; w < W && !call.frozen; ++w)
                        value *= 1.0 - weights[(R + w) * N + n] * logistic(erases[w * M + m]);
                    for (int64_t w = 0; w < W && !call.frozen; ++w)
                        value += weights[(R + w) * N + n] * std::tanh(adds[w * M + m]);
                    for (int64_t r = 0; r < R; ++r) read[r * M + m] += weights[r * N + n] * value;
                }
            append(out.controls, control);
            append(out.reads, read);
        }
        append(out.memory, memory);
        append(out.weighting, weights);
        append(out.cell, cell);
    }
    return out;
}

void run(const Case& c) {
    const ssmn_ntm_call& call = c.call;
    std::mt19937 random(7);
    const size_t B = call.streams, T = call.steps, N = call.slots, M = call.width, C = call.controls;
    const size_t R = call.read_heads, W = call.write_heads, H = R + W;
    const size_t G = call.is_lstm ? 4 * C : C, K = call.is_lstm ? C : 0;
    const size_t E = H * M + 2 * W * M + H * (2 * call.shift_range + 4);
    Problem p{
        normal(B * T * G, random),
        normal((R * M + K) * G, random),
        normal(C * E, random),
        normal(E, random),
        normal(B * M * N, random),
        {},
        normal(B * K, random),
        normal(B * K, random),
        normal(B * R * M, random),
        {},
        {}};
    for (double& value : p.emit)
        value *= 0.5;  // so that no weight of a head comes near 0, where float has no digits left
    for (size_t head = 0; head < B * H; ++head) {
        Numbers before = softmax(normal(N, random));
        for (double& value : before) value = static_cast<float>(value);
        append(p.weighting, before);
    }
    std::uniform_real_distribution<double> share;
    for (size_t t = 0; t < B * T; ++t) {
        p.mask.push_back(!c.has_mask || share(random) < 0.7);
        p.reset.push_back(c.has_reset && share(random) < 0.2);
    }
    const uint8_t* mask = c.has_mask ? p.mask.data() : nullptr;
    const uint8_t* reset = c.has_reset ? p.reset.data() : nullptr;
    const Floats driven = floats(p.driven), recurrent = floats(p.recurrent), emit = floats(p.emit);
    const Floats bias = floats(p.emit_bias), memory = floats(p.memory), weighting = floats(p.weighting);
    const Floats hidden = floats(p.hidden), cell = floats(p.cell), read = floats(p.read);

    // With what the gradients need, and without.
    Floats memories = poisoned(B * T * M * N), weightings = poisoned(B * T * H * N), cells = poisoned(B * T * K);
    Floats gates = poisoned(B * T * G), active = poisoned(B * T * E), controls, reads;
    for (const bool keeps : {false, true}) {
        const std::string name = c.name + (keeps ? "" : ", nothing kept");
        controls = poisoned(B * T * C), reads = poisoned(B * T * R * M);
        Floats last_memory = poisoned(B * M * N), last_weighting = poisoned(B * H * N), last_cell = poisoned(B * K);
        const auto kept = [keeps](Floats& x) { return keeps ? x.data() : nullptr; };
        check(
            ssmn_ntm(
                &call, driven.data(), recurrent.data(), emit.data(), bias.data(), mask, reset, memory.data(),
                weighting.data(), hidden.data(), cell.data(), read.data(), controls.data(), reads.data(),
                last_memory.data(), last_weighting.data(), last_cell.data(), kept(memories), kept(weightings),
                kept(cells), kept(gates), kept(active), c.threads) == SSMN_OK,
            name + ": status");
        const Outcome wanted = walk(c, p);
        check_close(controls, wanted.controls, name + ": controls");
        check_close(reads, wanted.reads, name + ": reads");
        check_close(last_memory, wanted.memory, name + ": memory");
        check_close(last_weighting, wanted.weighting, name + ": weighting");
        check_close(last_cell, wanted.cell, name + ": cell");
    }

    const Numbers controls_weights = normal(controls.size(), random), reads_weights = normal(reads.size(), random);
    const Numbers memory_weights = normal(B * M * N, random), weighting_weights = normal(B * H * N, random);
    const Numbers cell_weights = normal(B * K, random);
    const Floats d_controls = floats(controls_weights), d_reads = floats(reads_weights);
    Floats d_memory = floats(memory_weights), d_weighting = floats(weighting_weights), d_cell = floats(cell_weights);
    Floats d_driven = poisoned(B * T * G), d_emitted = poisoned(B * T * E);
    Floats d_hidden = poisoned(B * K), d_read = poisoned(B * R * M);
    check(
        ssmn_ntm_backward(
            &call, recurrent.data(), emit.data(), mask, reset, memory.data(), weighting.data(), cell.data(),
            memories.data(), weightings.data(), cells.data(), gates.data(), active.data(), d_controls.data(),
            d_reads.data(), d_driven.data(), d_emitted.data(), d_memory.data(), d_weighting.data(), d_cell.data(),
            d_hidden.data(), d_read.data(), c.threads) == SSMN_OK,
        c.name + ": status of the gradients");
    Floats d_emit(C * E, 0.0f), d_bias(E, 0.0f);
    for (size_t t = 0; t < B * T; ++t)
        for (size_t e = 0; e < E; ++e) {
            d_bias[e] += d_emitted[t * E + e];
            for (size_t i = 0; i < C; ++i) d_emit[i * E + e] += controls[t * C + i] * d_emitted[t * E + e];
        }
    const auto loss = [&] {
        const Outcome out = walk(c, p);
        return inner(out.controls, controls_weights) + inner(out.reads, reads_weights) +
               inner(out.memory, memory_weights) + inner(out.weighting, weighting_weights) +
               inner(out.cell, cell_weights);
    };
    check_gradient(d_driven, p.driven, loss, random, c.name + ": d_driven");
    check_gradient(d_emit, p.emit, loss, random, c.name + ": d_emit");
    check_gradient(d_bias, p.emit_bias, loss, random, c.name + ": d_emit_bias");
    check_gradient(d_memory, p.memory, loss, random, c.name + ": d_memory");
    check_gradient(d_weighting, p.weighting, loss, random, c.name + ": d_weighting");
    check_gradient(d_read, p.read, loss, random, c.name + ": d_read");
    check_gradient(d_hidden, p.hidden, loss, random, c.name + ": d_hidden");
    check_gradient(d_cell, p.cell, loss, random, c.name + ": d_cell");
}

void check_all() {
    // {B, T, N, M, C, R, write heads, range, LSTM, frozen}
    run({"feed-forward", {3, 4, 13, 5, 6, 1, 1, 1, 0, 0}});
    run({"LSTM", {2, 5, 9, 4, 7, 1, 1, 1, 1, 0}});
    run({"whole vectors", {2, 3, 32, 8, 16, 1, 1, 1, 1, 0}});
    run({"more heads", {2, 4, 11, 3, 5, 3, 2, 1, 0, 0}});
    run({"three write heads", {2, 3, 7, 4, 5, 1, 3, 1, 1, 0}});
    run({"far moves", {2, 4, 9, 3, 5, 2, 1, 3, 0, 0}});
    run({"moves beyond the memory", {2, 3, 2, 3, 4, 1, 1, 3, 1, 0}});
    run({"no moves", {2, 3, 7, 3, 4, 1, 1, 0, 0, 0}});
    run({"one row", {2, 3, 1, 3, 4, 1, 1, 1, 0, 0}});
    run({"frozen", {2, 4, 6, 3, 5, 2, 1, 1, 1, 1}});
    run({"masks and resets", {4, 9, 6, 3, 5, 2, 1, 1, 1, 0}, true, true});
    run({"masks and resets, feed-forward", {4, 9, 6, 3, 5, 2, 1, 1, 0, 0}, true, true});
    run({"threads", {12, 6, 40, 8, 10, 2, 1, 1, 1, 0}, false, true, 3});
    run({"no steps", {2, 0, 5, 3, 4, 1, 1, 1, 1, 0}});
    run({"nothing", {0, 3, 5, 3, 4, 1, 1, 1, 0, 0}});
}

}  // namespace

int main() {
    return on_every_path("ntm", check_all);
}

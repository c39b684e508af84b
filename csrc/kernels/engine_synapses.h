// A layer of synaptic memory.
#ifndef SSMN_ENGINE_SYNAPSES_H
#define SSMN_ENGINE_SYNAPSES_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_chunk.h"
#include "engine_head.h"
#include "engine_memory.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kMemoryColumns = 4;  // of 16, that one worker steps at a time

inline float sigmoid(float x) {
    return 1.0f / (1.0f + std::exp(-x));
}

// A stream's hidden vector of the step before.
inline float* previous_of(const Chunk& c, const ssmn_engine_layer& layer, int64_t stream) {
    return c.state_of(stream) + layer.state + c.D * padded(c.D / c.e.memory_heads);
}

// The hidden vectors, and beside each the one before.
inline void prepare_memory(Chunk& c, const ssmn_engine_layer& layer) {
    c.each(c.rows, [&](int64_t row) {
        float* hidden = c.w.hidden.values + row * c.w.hidden.stride;
        normalise(c.D, c.w.x + row * c.wide, c.e.norm_epsilon, c.floats(layer.mixer_norm), hidden);
        encode(c.w.hidden, row);
        if (row < c.n) {
            std::copy_n(previous_of(c, layer, row), c.D, c.w.previous.values + row * c.w.previous.stride);
            encode(c.w.previous, row);
        }
        if (row + c.n < c.rows) {
            std::copy_n(hidden, c.D, c.w.previous.values + (row + c.n) * c.w.previous.stride);
            encode(c.w.previous, row + c.n);
        }
    });
}

// Unit keys and queries, and the coefficients of every head.
inline void open_gates(const Chunk& c, const ssmn_engine_layer& layer, int64_t row) {
    const int64_t H = c.e.memory_heads, K = c.D / H;
    const ssmn_engine_learning& learning = c.learning_of(row);
    const float* gates = c.w.gates + row * c.w.gate_stride;
    const float* key_gates = c.w.key_gates + row * c.w.gate_stride;
    const float* decay_gates = gates + (c.e.has_erasure ? 2 * H : H);
    const float base = learning.plasticity_eta >= 0.0f ? learning.plasticity_eta : c.e.plasticity_eta;
    const float threshold = learning.write_threshold >= 0.0f ? learning.write_threshold : c.e.write_threshold;
    const float elapsed = c.elapsed_of(row);
    c.w.strengths[row] = std::min(learning.eta_scale * base, 0.5f);  // eta never exceeds 1
    for (int64_t h = 0; h < H; ++h) {
        make_unit(K, c.w.keys + row * c.wide + h * K);
        make_unit(K, c.w.parts + row * c.w.part_stride + h * K);
        const float swing = sigmoid(gates[h] + c.floats(layer.importance_bias)[h] + key_gates[h]);
        const float importance = std::min(2.0f * c.e.plasticity_eta * swing, 1.0f);
        const float eta = std::min(learning.eta_scale * std::min(2.0f * base * swing, 1.0f), 1.0f);
        const float rate = learning.decay_rate >= 0.0f ? learning.decay_rate : c.floats(layer.decay_rate)[h];
        const float log_keep = -rate * softplus(decay_gates[h] + kUnitDeviation) * learning.decay_scale * elapsed;
        float* to = c.w.coefficients + (row * H + h) * 3;
        const bool closed = learning.frozen || importance < threshold;
        to[0] = closed ? 0.0f : eta;
        to[1] = closed || c.e.is_hebbian ? 0.0f : eta;
        if (c.e.has_erasure && !closed)
            to[1] = sigmoid(gates[H + h] + c.floats(layer.erasure_bias)[h] + key_gates[H + h]);
        to[2] = closed ? 1.0f : std::exp(std::max(log_keep, kForgotten));
    }
}

// Writes the steps [from, to) into the memories, and reads them into w.reads.
inline void step_memory(Chunk& c, const ssmn_engine_layer& layer, int64_t from, int64_t to) {
    const int64_t H = c.e.memory_heads, K = c.D / H, V = padded(K);
    const int64_t pieces = (V / kWide + kMemoryColumns - 1) / kMemoryColumns;
    c.each(c.n * H * pieces, [&](int64_t unit) {
        const int64_t stream = unit / (H * pieces), h = unit / pieces % H;
        const int64_t column = unit % pieces * kMemoryColumns * kWide;
        const int64_t columns = std::min(kMemoryColumns, (V - column) / kWide);
        float* memory = c.state_of(stream) + layer.state + h * K * V + column;
        for (int64_t step = from; step < to; ++step) {
            const int64_t row = step * c.n + stream, left = std::min(K - column, columns * kWide);
            const float* parts = c.w.parts + row * c.w.part_stride + h * K;
            const float* k = c.w.keys + row * c.wide + h * K;
            const float* now = c.w.coefficients + (row * H + h) * 3;
            float v[kMemoryColumns * kWide] = {}, o[kMemoryColumns * kWide];
            std::copy_n(parts + c.wide + column, left, v);
            const Coefficients strength{now[0], now[1], now[2]};
            if (columns == 4) write_and_read<4>(memory, V, K, k, parts, v, strength, o);
            if (columns == 3) write_and_read<3>(memory, V, K, k, parts, v, strength, o);
            if (columns == 2) write_and_read<2>(memory, V, K, k, parts, v, strength, o);
            if (columns == 1) write_and_read<1>(memory, V, K, k, parts, v, strength, o);
            std::copy_n(o, left, c.w.reads + row * c.wide + h * K + column);
        }
    });
}

// Asks the memories again, for the streams of one step; the questions stand where the queries were.
inline void ask_again(Chunk& c, const ssmn_engine_layer& layer, int64_t step) {
    const int64_t H = c.e.memory_heads, K = c.D / H, V = padded(K), pieces = V / kWide;
    c.each(c.n * H * pieces, [&](int64_t unit) {
        const int64_t stream = unit / (H * pieces), h = unit / pieces % H, column = unit % pieces * kWide;
        const int64_t row = step * c.n + stream;
        float o[kWide];
        read_memory<1>(
            c.state_of(stream) + layer.state + h * K * V + column, V, K, c.w.parts + row * c.w.part_stride + h * K, o);
        std::copy_n(o, std::min(K - column, kWide), c.w.reads + row * c.wide + h * K + column);
    });
}

// norm(o) = o / sqrt(mean o^2 + floor), per head: a read that is short beside the write strength is faded.
inline void normalise_read(const Chunk& c, const ssmn_engine_layer& layer, int64_t row, float* answer) {
    const int64_t H = c.e.memory_heads, K = c.D / H;
    const float shortest = c.e.read_floor * c.w.strengths[row];
    for (int64_t h = 0; h < H; ++h)
        normalise(
            K, c.w.reads + row * c.wide + h * K, shortest * shortest + kUnitEpsilon, c.floats(layer.read_norm),
            answer + h * K);
}

// answer = answer * silu(W_g h + bias)
inline void gate_answer(const Chunk& c, const ssmn_engine_layer& layer, int64_t row, float* answer) {
    const float* gate = c.w.parts + row * c.w.part_stride + 2 * c.wide;
    const float* bias = c.floats(layer.gate_bias);
    int64_t i = 0;
    for (; i + kLanes <= c.D; i += kLanes) {
        const Vec x = load(gate + i) + load(bias + i);
        store(answer + i, load(answer + i) * (x * SSMN_PATH::sigmoid(x)));
    }
    if (i == c.D) return;
    const Vec x = load_part(gate + i, c.D - i) + load_part(bias + i, c.D - i);
    store_part(answer + i, load_part(answer + i, c.D - i) * (x * SSMN_PATH::sigmoid(x)), c.D - i);
}

// (R + 1) * softmax of the mix.
inline float share_of_round(const Chunk& c, const float* mix, int64_t round) {
    float most = mix[0], total = 0.0f;
    for (int64_t r = 1; r <= c.e.chat_rounds; ++r) most = std::max(most, mix[r]);
    for (int64_t r = 0; r <= c.e.chat_rounds; ++r) total += std::exp(mix[r] - most);
    return std::exp(mix[round] - most) / total * static_cast<float>(c.e.chat_rounds + 1);
}

// One step of all streams: write, read, and ask again with what was answered.
inline void chat(Chunk& c, const ssmn_engine_layer& layer, int64_t step) {
    const int64_t R = c.e.chat_rounds, H = c.e.memory_heads, K = c.D / H, first = step * c.n;
    const int64_t mix = (c.e.has_erasure ? 3 : 2) * H;
    step_memory(c, layer, step, step + 1);
    for (int64_t round = 0;; ++round) {
        c.each(c.n, [&](int64_t unit) {
            const int64_t row = first + unit;
            float* answer = c.w.mixed.values + row * c.w.mixed.stride;
            float* total = c.w.answers + row * c.wide;
            normalise_read(c, layer, row, answer);
            encode(c.w.mixed, row);
            const float weight = share_of_round(c, c.w.gates + row * c.w.gate_stride + mix, round);
            if (round == 0) std::fill_n(total, c.D, 0.0f);
            add_scaled(c.D, weight, answer, total);
        });
        if (round == R) break;
        c.product(
            layer.output, c.w.mixed, first, c.n,
            {c.w.thought.values + first * c.w.thought.stride, c.w.thought.stride, c.D, nullptr, Then::kStore},
            panels(c.D));
        const float keep = c.floats(layer.chat_keep)[round], add = c.floats(layer.chat_add)[round];
        c.each(c.n, [&](int64_t unit) {
            const int64_t row = first + unit;
            const float* hidden = c.w.hidden.values + row * c.w.hidden.stride;
            float* thought = c.w.thought.values + row * c.w.thought.stride;
            normalise(c.D, thought, c.e.chat_epsilon, nullptr, thought);
            for (int64_t i = 0; i < c.D; ++i) thought[i] = keep * hidden[i] + add * thought[i];
            encode(c.w.thought, row);
        });
        c.product(
            layer.input, c.w.thought, first, c.n,
            {c.w.parts + first * c.w.part_stride, c.w.part_stride, c.D, nullptr, Then::kStore}, panels(c.D));
        c.each(c.n, [&](int64_t unit) {
            const int64_t row = first + unit;
            for (int64_t h = 0; h < H; ++h) make_unit(K, c.w.parts + row * c.w.part_stride + h * K);
        });
        ask_again(c, layer, step);
    }
    c.each(c.n, [&](int64_t unit) {
        const int64_t row = first + unit;
        float* answer = c.w.mixed.values + row * c.w.mixed.stride;
        std::copy_n(c.w.answers + row * c.wide, c.D, answer);
        gate_answer(c, layer, row, answer);
        encode(c.w.mixed, row);
    });
}

// Fills w.mixed.
inline void remember(Chunk& c, const ssmn_engine_layer& layer) {
    prepare_memory(c, layer);
    c.product(layer.input, c.w.hidden, {c.w.parts, c.w.part_stride, 3 * c.wide, nullptr, Then::kStore});
    c.product(layer.key, c.e.pairs_same ? c.w.hidden : c.w.previous, {c.w.keys, c.wide, c.wide, nullptr, Then::kStore});
    c.product(layer.gate, c.w.hidden, {c.w.gates, c.w.gate_stride, layer.gate.rows, nullptr, Then::kStore});
    c.product(
        layer.key_gate, c.w.previous, {c.w.key_gates, c.w.gate_stride, layer.key_gate.rows, nullptr, Then::kStore});
    c.each(c.rows, [&](int64_t row) { open_gates(c, layer, row); });
    c.each(c.n, [&](int64_t i) {
        std::copy_n(c.w.hidden.values + ((c.t - 1) * c.n + i) * c.w.hidden.stride, c.D, previous_of(c, layer, i));
    });
    if (c.e.chat_rounds > 0) {
        for (int64_t step = 0; step < c.t; ++step) chat(c, layer, step);
    } else {
        step_memory(c, layer, 0, c.t);
        c.each(c.rows, [&](int64_t row) {
            float* answer = c.w.mixed.values + row * c.w.mixed.stride;
            normalise_read(c, layer, row, answer);
            gate_answer(c, layer, row, answer);
            encode(c.w.mixed, row);
        });
    }
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

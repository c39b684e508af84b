// What a step reads: tokens and the encoder that mixes them, or the columns of a series.
#ifndef SSMN_ENGINE_INPUT_H
#define SSMN_ENGINE_INPUT_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_chunk.h"
#include "engine_front.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kContext = 4;  // tokens that the encoder mixes

// The rotary angles of a row, in double precision: a stream has no last position.
inline void turn(const Chunk& c, int64_t row) {
    if (!c.e.has_rotary) return;
    const int64_t half = c.D / c.e.query_heads / 2;
    const double* frequencies = reinterpret_cast<const double*>(c.at(c.e.frequencies));
    const double position = static_cast<double>(c.position_of(row));
    for (int64_t i = 0; i < half; ++i) {
        c.w.cosines[row * half + i] = static_cast<float>(std::cos(position * frequencies[i]));
        c.w.sines[row * half + i] = static_cast<float>(std::sin(position * frequencies[i]));
    }
}

// A row of the table of tokens, in whatever format it is kept.
inline void embed(const Chunk& c, int64_t token, float* x) {
    const ssmn_matrix& m = c.e.input;
    const char* panel = c.at(m.offset) + token / kPanelRows * panel_bytes(m.format, c.D);
    const int64_t row = token % kPanelRows;
    if (m.format == SSMN_FLOAT32) {
        const float* from = reinterpret_cast<const float*>(panel);
        for (int64_t j = 0; j < c.D; ++j) x[j] = from[j * kPanelRows + row];
    } else if (m.format == SSMN_BFLOAT16) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(panel);
        for (int64_t j = 0; j < c.D; ++j) x[j] = widen(from[(j / 2 * kPanelRows + row) * 2 + j % 2]);
    } else {
        const int64_t groups = (c.D + kGroup - 1) / kGroup, bytes = code_bytes(m.format);
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
        const bool four = m.format == SSMN_INT4;
        for (int64_t j = 0; j < c.D; ++j) {
            const int64_t in_group = j % kGroup, column = four ? in_group % (kGroup / 2) : in_group;
            const uint8_t byte =
                panel[scales_bytes(groups) + j / kGroup * bytes + column / 4 * 64 + row * 4 + column % 4];
            const int32_t code = !four ? static_cast<int8_t>(byte) : (in_group == column ? byte & 15 : byte >> 4) - 8;
            x[j] = widen(scales[j / kGroup * kPanelRows + row]) * static_cast<float>(code);
        }
    }
}

// thought = e + W_2 (silu(W_1 c) * W_3 c), c = the embeddings of the last four tokens, newest first.
inline void encode_thoughts(Chunk& c) {
    c.each(c.rows, [&](int64_t row) {
        const float* before = c.state_of(row % c.n) + c.e.front;
        float* context = c.w.context.values + row * c.w.context.stride;
        for (int64_t age = 0; age < kContext; ++age) {
            const int64_t step = row / c.n - age;
            const float* from = step >= 0 ? c.w.x + (row - age * c.n) * c.wide : before + (kContext - 1 + step) * c.D;
            std::copy_n(from, c.D, context + age * c.D);
        }
        encode(c.w.context, row);
    });
    c.each(c.n, [&](int64_t i) {
        const float* context = c.w.context.values + ((c.t - 1) * c.n + i) * c.w.context.stride;
        for (int64_t age = 0; age < kContext - 1; ++age)
            std::copy_n(context + age * c.D, c.D, c.state_of(i) + c.e.front + (kContext - 2 - age) * c.D);
    });
    c.product(c.e.encoder_expand, c.w.context, {c.w.thought.values, c.w.thought.stride, c.D, nullptr, Then::kGate});
    encode_rows(c, c.w.thought);
    c.product(c.e.encoder_contract, c.w.thought, {c.w.x, c.wide, c.D, nullptr, Then::kAdd});
}

// The elapsed time that a stream of the call has not been told yet.
inline float& pending_of(const Chunk& c, int64_t member) {
    float* numbers = c.e.streams + c.call.which[member] * c.e.stream_floats + c.e.front;
    return Front{numbers, c.e.is_normalised ? c.e.inputs : 0}.pending();
}

// The time since the last row that was there, at `place`; what was pending before the call counts if none was.
inline float waited(const Chunk& c, int64_t place) {
    int64_t from = place;
    while (from >= c.call.streams && c.absent(from - c.call.streams)) from -= c.call.streams;
    float time = from < c.call.streams ? pending_of(c, place % c.call.streams) : 0.0f;
    for (; from <= place; from += c.call.streams) time += c.elapsed_at(from);
    return time;
}

// The outputs of absent rows, and the time that is pending after the last step.
inline void end_gaps(const Chunk& c, int64_t member) {
    bool is_pending = false;
    int64_t place = member;
    for (int64_t step = 0; step < c.call.steps; ++step, place += c.call.streams) {
        is_pending = c.absent(place);
        if (is_pending && c.is_asked(place)) std::fill_n(c.output_at(place), c.e.outputs, 0.0f);
    }
    pending_of(c, member) = is_pending ? waited(c, place - c.call.streams) : 0.0f;
}

// A target in the units of the outputs, by the statistics that its prediction was mapped back with.
inline void standardise_target(const Chunk& c, const Front& front, int64_t row) {
    if (c.call.target == nullptr || !c.maps_back()) return;
    for (int64_t o = 0; o < c.points(); ++o)
        c.w.targets[row * c.points() + o] = static_cast<float>(
            standardised(c.call.target[c.place_of(row) * c.points() + o], front.column(c.columns()[o]).lie()));
}

// What the steps of one stream bring: columns, marks of missing values, static and future inputs.
inline void read_front(const Chunk& c, int64_t i) {
    const Front front{c.state_of(i) + c.e.front, c.e.is_normalised ? c.e.inputs : 0};
    for (int64_t t = 0; t < c.t; ++t) {
        const int64_t row = t * c.n + i, place = c.place_of(row);
        const float* x = c.input_at(place);
        if (c.e.masks_missing) c.w.times[row] = waited(c, place);
        if (c.e.is_normalised) standardise_target(c, front, row);
        float* to = c.w.read + row * c.read_width;
        for (int64_t j = 0; j < c.e.inputs; ++j) {
            const bool is_missing = x[j] != x[j];
            to[j] = is_missing ? 0.0f : x[j];
            if (c.e.is_normalised && !is_missing)
                to[j] = static_cast<float>(standardised(x[j], front.column(j).observe(x[j], c.e.norm_rate)));
            if (c.e.masks_missing) to[c.e.inputs + j] = is_missing ? 1.0f : 0.0f;
        }
        to += c.e.inputs * (c.e.masks_missing ? 2 : 1);
        to = std::copy_n(c.call.fixed + c.members[i] * c.e.static_width, c.e.static_width, to);
        std::copy_n(c.call.future + place * c.e.future_width, c.e.future_width, to);
        if (c.maps_back()) {
            for (int64_t o = 0; o < c.points(); ++o)
                c.w.lies[row * c.points() + o] = front.column(c.columns()[o]).lie();
        }
    }
}

// Fills w.x.
inline void read_input(Chunk& c) {
    c.each(c.rows, [&](int64_t row) { turn(c, row); });
    if (c.e.is_text) {
        c.each(c.rows, [&](int64_t row) {
            embed(c, static_cast<const int64_t*>(c.call.x)[c.place_of(row)], c.w.x + row * c.wide);
        });
        if (c.e.has_encoder) encode_thoughts(c);
        return;
    }
    if (!c.reads_plainly) c.each(c.n, [&](int64_t i) { read_front(c, i); });
    // The input is narrow and in float32: column by column.
    const float* bias = c.floats(c.e.input_bias);
    c.each(c.rows, [&](int64_t row) {
        Vectors x{};
        x.width = x.stride = c.read_width;
        x.values = c.reads_plainly ? const_cast<float*>(c.input_at(c.place_of(row))) : c.w.read + row * c.read_width;
        SSMN_PATH::multiply(
            c.e.input, c.at(c.e.input.offset), x, 0, 1, 0, panels(c.D),
            {c.w.x + row * c.wide, c.wide, c.D, bias, Then::kStore});
    });
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

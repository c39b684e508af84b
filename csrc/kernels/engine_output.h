// What a step says: logits, or the values of a head, and the two memories that correct them.
#ifndef SSMN_ENGINE_OUTPUT_H
#define SSMN_ENGINE_OUTPUT_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_chunk.h"
#include "engine_head.h"
#include "engine_readout.h"
#include "output_memory.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// What the read-out sees of a row: the hidden vector at unit length, what was read, or both.
inline void put_features(const Chunk& c, int64_t row, float* to) {
    if (c.e.readout_features != SSMN_READS_INPUTS) {
        std::copy_n(c.w.hidden.values + row * c.w.hidden.stride, c.D, to);
        make_unit(c.D, to);
        to += c.D;
    }
    if (c.e.readout_features == SSMN_READS_HIDDEN) return;
    const float* read = c.reads_plainly ? c.input_at(c.place_of(row)) : c.w.read + row * c.read_width;
    const float factor = 1.0f / std::sqrt(static_cast<float>(c.read_width));
    for (int64_t j = 0; j < c.read_width; ++j) to[j] = read[j] * factor;
}

// The steps of one stream through its read-out.
inline void read_out(const Chunk& c, const Head& head, int64_t i) {
    const int64_t O = c.points();
    float* corrections = c.w.corrections + c.crew.worker() * c.w.correction_stride;
    float* said = corrections + padded(O);
    const Readout readout{c.e.readout,       readout_places(c.e),
                          c.e.readout_eta,   c.e.readout_log_keep,
                          c.e.readout_ridge, c.state_of(i) + c.e.head,
                          said + padded(O),  c.w.systems + c.crew.worker() * c.w.system_stride};
    const bool learns = c.call.target != nullptr && !c.learning_of(i).frozen;
    for (int64_t t = 0; t < c.t; ++t) {
        const int64_t row = t * c.n + i;
        float* values = c.w.logits + row * c.e.outputs;
        for (int64_t o = 0; o < O; ++o) said[o] = values[o * c.e.head_parts + head.point()];
        const float* target = !learns         ? nullptr
                              : c.maps_back() ? c.w.targets + row * O
                                              : c.call.target + c.place_of(row) * O;
        float* key = c.w.features + c.crew.worker() * c.w.feature_stride;
        put_features(c, row, key);
        readout.step(target, c.elapsed_of(row), key, said, corrections);
        for (int64_t o = 0; o < O; ++o) head.shift(corrections[o], values + o * c.e.head_parts);
    }
}

// The head's values, corrected by the read-out and mapped back to units.
inline void write_prediction(Chunk& c) {
    const bool learns = c.e.readout != SSMN_NO_READOUT;
    if (!learns && c.call.last_only && !c.is_asked(c.place_of(c.rows - 1))) return;
    normalise_rows(c, c.e.norm);
    c.product(c.e.output, c.w.hidden, {c.w.logits, c.e.outputs, c.e.outputs, c.floats(c.e.output_bias), Then::kStore});
    const Head head{c.e.head_kind, c.e.head_parts, c.e.head_middle, c.e.gaps == 0 ? nullptr : c.floats(c.e.gaps)};
    c.each(c.rows, [&](int64_t row) {
        for (int64_t o = 0; o < c.points(); ++o) head.spread(c.w.logits + row * c.e.outputs + o * c.e.head_parts);
    });
    if (learns) c.each(c.n, [&](int64_t i) { read_out(c, head, i); });
    c.each(c.rows, [&](int64_t row) {
        const int64_t place = c.place_of(row);
        if (!c.is_asked(place)) return;
        float* values = c.w.logits + row * c.e.outputs;
        for (int64_t o = 0; o < c.points() && c.maps_back(); ++o)
            head.map_back(c.w.lies[row * c.points() + o], values + o * c.e.head_parts);
        std::copy_n(values, c.e.outputs, c.output_at(place));
    });
}

// The steps of one stream through its output memory.
inline void adapt(const Chunk& c, int64_t i) {
    const ssmn_engine_learning& learning = c.learning_of(i);
    const bool closed = learning.frozen != 0;
    const float eta = closed ? 0.0f : learning.output_eta < 0.0f ? c.e.output_eta : learning.output_eta;
    const float rate = closed ? 0.0f : learning.output_rate < 0.0f ? c.e.output_rate : learning.output_rate;
    float* memory = c.state_of(i) + c.e.head;
    float* key = memory + c.e.outputs * c.wide;
    float* prediction = key + c.wide;
    float* ratio = prediction + c.e.outputs;
    const OutputStreamState state{memory, c.wide, key, prediction, ratio, ratio + c.e.outputs};
    OutputMemory output(
        c.e.outputs, c.D, c.e.output_threshold, c.e.output_switch, c.w.errors + c.crew.worker() * c.w.error_floats);
    OutputStep steps[kOutputChunk];
    int64_t count = 0;
    for (int64_t t = 0; t < c.t; ++t) {
        const int64_t row = t * c.n + i;
        float* unit = c.w.keys + row * c.wide;
        std::copy_n(c.w.hidden.values + row * c.w.hidden.stride, c.D, unit);
        make_unit(c.D, unit);
        const float elapsed = c.elapsed_of(row);
        steps[count++] = {
            c.w.logits + row * c.e.outputs, unit, static_cast<const int64_t*>(c.call.x)[c.place_of(row)], eta,
            std::max(-rate * elapsed, kForgotten)};
        if (count == kOutputChunk || t + 1 == c.t) {
            output.run(steps, count, state);
            count = 0;
        }
    }
}

// Every step is predicted, asked for or not, since the output memory learns from what was wrong.
inline void write_adapted(Chunk& c) {
    normalise_rows(c, c.e.norm);
    c.product(c.e.output, c.w.hidden, {c.w.logits, c.e.outputs, c.e.outputs, nullptr, Then::kStore});
    c.each(c.n, [&](int64_t i) { adapt(c, i); });
    c.each(c.rows, [&](int64_t row) {
        const int64_t place = c.place_of(row);
        if (c.is_asked(place)) std::copy_n(c.w.logits + row * c.e.outputs, c.e.outputs, c.output_at(place));
    });
}

inline void write_output(Chunk& c) {
    if (c.e.has_output_memory) return write_adapted(c);
    if (!is_plain(c.e) && !c.e.is_text) return write_prediction(c);
    int64_t first = 0;
    if (c.call.last_only) {
        if (!c.is_asked(c.place_of(c.rows - 1))) return;
        first = (c.t - 1) * c.n;
    }
    normalise_rows(c, c.e.norm, first);
    const float* bias = c.e.output_bias == 0 ? nullptr : c.floats(c.e.output_bias);
    // Rows of one step lie side by side in the result, and so do those of several if all streams are in this block.
    const int64_t together = c.n == c.call.streams ? c.rows - first : c.n;
    for (int64_t row = first; row < c.rows; row += together)
        c.product(
            c.e.output, c.w.hidden, row, together,
            {c.output_at(c.place_of(row)), c.e.outputs, c.e.outputs, bias, Then::kStore}, panels(c.e.outputs));
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

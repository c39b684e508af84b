// A layer of window attention.
#ifndef SSMN_ENGINE_WINDOW_H
#define SSMN_ENGINE_WINDOW_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_attention.h"
#include "engine_chunk.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kAttentionSteps = 16;

inline Ring ring_of(const Chunk& c, const ssmn_engine_layer& layer, int64_t stream, int64_t key_head) {
    const int64_t head = c.D / c.e.query_heads, stride = padded(head);
    float* state = c.state_of(stream) + layer.state;
    return {
        state + key_head * c.e.ring * head,
        state + c.e.key_heads * c.e.ring * head + key_head * c.e.ring * stride,
        c.e.ring,
        head,
        stride,
    };
}

// Rotates one head in place: pairs (i, i + half).
inline void rotate(const Chunk& c, int64_t row, float* x, float factor) {
    const int64_t head = c.D / c.e.query_heads, half = head / 2;
    if (c.e.has_rotary) {
        const float* cosine = c.w.cosines + row * half;
        const float* sine = c.w.sines + row * half;
        for (int64_t i = 0; i < half; ++i) {
            const float first = x[i], second = x[i + half];
            x[i] = first * cosine[i] - second * sine[i];
            x[i + half] = second * cosine[i] + first * sine[i];
        }
    }
    if (factor != 1.0f) scale(head, factor, x);
}

// Rotates the queries and the key of one key head, and puts the key into the ring.
inline void store_key(const Chunk& c, const ssmn_engine_layer& layer, int64_t row, int64_t key_head) {
    const int64_t head = c.D / c.e.query_heads, group = c.e.query_heads / c.e.key_heads;
    float* line = c.w.parts + row * c.w.part_stride;
    const float factor = 1.0f / std::sqrt(static_cast<float>(head));
    for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) rotate(c, row, line + h * head, factor);
    float* key = line + c.wide + key_head * head;
    rotate(c, row, key, 1.0f);
    ring_of(c, layer, row % c.n, key_head)
        .put(c.position_of(row), key, line + c.wide + padded(head * c.e.key_heads) + key_head * head);
}

inline void attend_steps(
    const Chunk& c,
    const ssmn_engine_layer& layer,
    const float* sinks,
    int64_t stream,
    int64_t key_head,
    int64_t from,
    int64_t to) {
    constexpr int64_t kQueries = 48;
    const int64_t head = c.D / c.e.query_heads, group = c.e.query_heads / c.e.key_heads;
    const Ring ring = ring_of(c, layer, stream, key_head);
    float* scores = c.w.scores + c.crew.worker() * c.w.score_floats;
    Query queries[kQueries];
    int64_t count = 0;
    for (int64_t step = from; step < to; ++step)
        for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) {
            const int64_t row = step * c.n + stream;
            queries[count++] = {
                c.w.parts + row * c.w.part_stride + h * head,
                c.w.mixed.values + row * c.w.mixed.stride + h * head,
                c.position_of(row),
                sinks == nullptr ? nullptr : sinks + h,
            };
            if (count == kQueries) {
                attend_all(ring, queries, count, c.e.window, scores, c.e.ring + 2 * kPanelRows);
                count = 0;
            }
        }
    attend_all(ring, queries, count, c.e.window, scores, c.e.ring + 2 * kPanelRows);
}

// Fills w.mixed.
inline void look(Chunk& c, const ssmn_engine_layer& layer) {
    normalise_rows(c, layer.mixer_norm);
    c.product(layer.input, c.w.hidden, {c.w.parts, c.w.part_stride, layer.input.rows, nullptr, Then::kStore});
    const int64_t heads = c.e.key_heads;
    const float* sinks = layer.sinks == 0 ? nullptr : c.floats(layer.sinks);
    if (c.t == 1) {  // a step's own keys are all that it waits for
        c.each(c.n * heads, [&](int64_t unit) {
            store_key(c, layer, unit / heads, unit % heads);
            attend_steps(c, layer, sinks, unit / heads, unit % heads, 0, 1);
        });
    } else {
        c.each(c.rows, [&](int64_t row) {
            for (int64_t h = 0; h < heads; ++h) store_key(c, layer, row, h);
        });
        const int64_t pieces = (c.t + kAttentionSteps - 1) / kAttentionSteps;
        c.each(c.n * heads * pieces, [&](int64_t unit) {
            const int64_t from = unit % pieces * kAttentionSteps, rest = unit / pieces;
            attend_steps(c, layer, sinks, rest / heads, rest % heads, from, std::min(c.t, from + kAttentionSteps));
        });
    }
    encode_rows(c, c.w.mixed);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

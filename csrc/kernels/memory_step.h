// One step of the memory by itself: no chunk, so no matrix but the state, which is read twice and written once.
#ifndef SSMN_MEMORY_STEP_H
#define SSMN_MEMORY_STEP_H

#include "memory_pass.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Adds q_i row_i and k_i row_i over the rows of some vectors of columns of a state.
template <int64_t Vectors>
SSMN_INLINE void recall(
    int64_t rows, const float* state, int64_t row, const float* q, const float* k, Vec* by_query, Vec* by_key) {
    for (int64_t v = 0; v < Vectors; ++v) by_query[v] = by_key[v] = Vec{};
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t v = 0; v < Vectors; ++v) {
            const Vec line = load(state + i * row + v * kLanes);
            by_query[v] += line * q[i];
            by_key[v] += line * k[i];
        }
}

// Columns [first, first + Vectors * kLanes) of a step: with a = exp(log_keep), S' = a S + k u^T, u = w v - a e S^T k,
// o = a S^T q + (q.k) u. A closed step has no u and a = 1. `next` may be null, `state` is null for zeros.
template <int64_t Vectors>
SSMN_INLINE void step_columns(
    int64_t rows,
    int64_t width,
    const float* state,
    float* next,
    const float* q,
    const float* k,
    const float* v,
    float keep,
    float write,
    float erase,
    float match,
    float* o) {
    Vec by_query[Vectors] = {}, by_key[Vectors] = {}, u[Vectors];
    if (state != nullptr) recall<Vectors>(rows, state, width, q, k, by_query, by_key);
    for (int64_t l = 0; l < Vectors; ++l) {
        u[l] = load(v + l * kLanes) * write - by_key[l] * (keep * erase);
        store(o + l * kLanes, by_query[l] * keep + u[l] * match);
    }
    if (next == nullptr) return;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t l = 0; l < Vectors; ++l) {
            const Vec before = state == nullptr ? Vec{} : load(state + i * width + l * kLanes) * keep;
            store(next + i * width + l * kLanes, before + u[l] * k[i]);
        }
}

// The last columns, fewer than a vector.
inline void step_rest(
    int64_t rows,
    int64_t width,
    int64_t columns,
    const float* state,
    float* next,
    const float* q,
    const float* k,
    const float* v,
    float keep,
    float write,
    float erase,
    float match,
    float* o) {
    for (int64_t j = 0; j < columns; ++j) {
        float by_query = 0.0f, by_key = 0.0f;
        for (int64_t i = 0; i < rows && state != nullptr; ++i) {
            by_query += state[i * width + j] * q[i];
            by_key += state[i * width + j] * k[i];
        }
        const float u = v[j] * write - by_key * (keep * erase);
        o[j] = by_query * keep + u * match;
        for (int64_t i = 0; i < rows && next != nullptr; ++i)
            next[i * width + j] = (state == nullptr ? 0.0f : state[i * width + j] * keep) + u * k[i];
    }
}

// A lane of a call with one step; `spare` is [2 keys + 2 values].
inline void step_lane(const Pass& pass, Lane lane, void* o, float* final_state, float* spare) {
    const MemoryRun& run = *pass.plan->first(lane.row, 0);
    const int64_t K = pass.key_width, V = pass.value_width, scalar = pass.scalar(lane.row, 0, lane.head);
    float *q = spare, *k = q + pass.keys, *v = k + pass.keys, *output = v + pass.values;
    pack(1, K, pass.q, scalar * K, 0, pass.half, nullptr, q, 0);
    pack(1, K, pass.k, scalar * K, 0, pass.half, nullptr, k, 0);
    pack(1, V, pass.v, scalar * V, 0, pass.half, nullptr, v, 0);
    const bool open = pass.opens(lane.row, 0, lane.head);
    const float decay = pass.log_decay[scalar];
    const float keep = open ? exp_nonpositive(broadcast(decay > kForgotten ? decay : kForgotten))[0] : 1.0f;
    const float write = open ? (pass.eta == nullptr ? 1.0f : pass.eta[scalar]) : 0.0f;
    const float erase = open && pass.erases ? pass.erase[scalar] : 0.0f;
    const float match = open ? dot_vectors(pass.keys, q, k) : 0.0f;
    const float* state = pass.starts(run) ? pass.initial_state + pass.stream_state(run.begin, lane.head) : nullptr;
    float* next =
        final_state != nullptr && run.end >= 0 ? final_state + pass.stream_state(run.end, lane.head) : nullptr;
    if (!open && next != nullptr) {
        copy_or_clear(K * V, state, 0, next);
        next = nullptr;
    }
    const auto from = [](auto* array, int64_t j) { return array == nullptr ? nullptr : array + j; };
    int64_t j = 0;
    for (; j + 4 * kLanes <= V; j += 4 * kLanes)
        step_columns<4>(K, V, from(state, j), from(next, j), q, k, v + j, keep, write, erase, match, output + j);
    for (; j + kLanes <= V; j += kLanes)
        step_columns<1>(K, V, from(state, j), from(next, j), q, k, v + j, keep, write, erase, match, output + j);
    step_rest(K, V, V - j, from(state, j), from(next, j), q, k, v + j, keep, write, erase, match, output + j);
    unpack_row(V, output, o, scalar * V, pass.half);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

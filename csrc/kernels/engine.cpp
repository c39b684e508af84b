// A whole model, step by step: every worker of a gang runs the same program, phase by phase.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine_chunk.h"
#include "engine_input.h"
#include "engine_output.h"
#include "engine_synapses.h"
#include "engine_window.h"
#include "path.h"
#include "pool.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

void feed_forward(Chunk& c, const ssmn_engine_layer& layer) {
    normalise_rows(c, layer.ffn_norm);
    c.product(layer.expand, c.w.hidden, {c.w.inner.values, c.w.inner.stride, c.e.inner_width, nullptr, Then::kGate});
    encode_rows(c, c.w.inner);
    c.product(layer.contract, c.w.inner, {c.w.x, c.wide, c.D, nullptr, Then::kAdd});
}

void run_chunk(Chunk& c) {
    read_input(c);
    for (int64_t i = 0; i < c.e.layer_count; ++i) {
        const ssmn_engine_layer& layer = c.e.layers[i];
        if (layer.plastic != 0) {
            remember(c, layer);
        } else {
            look(c, layer);
        }
        c.product(layer.output, c.w.mixed, {c.w.x, c.wide, c.D, nullptr, Then::kAdd});
        feed_forward(c, layer);
    }
    write_output(c);
    c.each(1, [&](int64_t) {
        for (int64_t i = 0; i < c.n; ++i) c.e.positions[c.stream_of(i)] += c.t;
    });
}

// All steps of the block's streams.
void run_whole(Chunk& c) {
    const int64_t most = c.e.chunk / c.n;
    for (int64_t step = 0; step < c.call.steps; step += c.t) {
        c.t = std::min(most, c.call.steps - step);
        c.rows = c.n * c.t;
        for (int64_t row = 0; row < c.rows; ++row)
            c.places[row] = (step + row / c.n) * c.call.streams + c.members[row % c.n];
        run_chunk(c);
    }
}

// The steps of the block's only stream that are not absent.
void run_present(Chunk& c) {
    int64_t place = c.members[0];
    const int64_t end = c.call.steps * c.call.streams;
    while (place < end) {
        for (c.t = 0; place < end && c.t < c.e.chunk; place += c.call.streams)
            if (!c.absent(place)) c.places[c.t++] = place;
        c.rows = c.t;
        if (c.t > 0) run_chunk(c);
    }
}

bool any_absent(const Chunk& c) {
    for (int64_t place = 0; place < c.call.steps * c.call.streams; ++place)
        if (c.absent(place)) return true;
    return false;
}

// The whole call, in blocks of streams.
void run(Chunk& c) {
    const bool has_gaps = c.e.masks_missing && any_absent(c);
    for (int64_t first = 0; first < c.call.streams; first += c.e.chunk) {
        const int64_t last = std::min(first + c.e.chunk, c.call.streams);
        if (!has_gaps) {
            c.n = last - first;
            for (int64_t i = 0; i < c.n; ++i) c.members[i] = first + i;
            run_whole(c);
        } else if (c.call.steps == 1) {
            c.n = 0;
            for (int64_t i = first; i < last; ++i)
                if (!c.absent(i)) c.members[c.n++] = i;
            if (c.n > 0) run_whole(c);
        } else {
            c.n = 1;  // the streams have their gaps in different places
            for (c.members[0] = first; c.members[0] < last; ++c.members[0]) run_present(c);
        }
    }
    if (c.e.masks_missing) c.each(c.call.streams, [&](int64_t member) { end_gaps(c, member); });
}

bool all_finite(int64_t count, const float* x) {
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) sum += x[i] * 0.0f;
    return sum == 0.0f;
}

bool none_infinite(int64_t count, const float* x) {
    int64_t infinite = 0;
    for (int64_t i = 0; i < count; ++i) infinite += std::abs(x[i]) > std::numeric_limits<float>::max();
    return infinite == 0;
}

int32_t check_input(const ssmn_engine& engine, const ssmn_engine_call& call) {
    const int64_t rows = call.streams * call.steps;
    if (engine.is_text) {
        const int64_t* tokens = static_cast<const int64_t*>(call.x);
        for (int64_t i = 0; i < rows; ++i)
            if (tokens[i] < 0 || tokens[i] >= engine.inputs) return SSMN_UNKNOWN_TOKEN;
        return SSMN_OK;
    }
    const float* x = static_cast<const float*>(call.x);
    const bool good =
        engine.masks_missing ? none_infinite(rows * engine.inputs, x) : all_finite(rows * engine.inputs, x);
    const int64_t points = call.target == nullptr ? 0 : engine.outputs / engine.head_parts;
    return good && none_infinite(rows * points, call.target) && all_finite(rows * engine.future_width, call.future) &&
                   all_finite(call.streams * engine.static_width, call.fixed)
               ? SSMN_OK
               : SSMN_NOT_FINITE;
}

struct Job {
    const ssmn_engine& engine;
    const ssmn_engine_call& call;
    Progress& progress;
};

}  // namespace

int32_t engine_run(ssmn_engine* engine, const ssmn_engine_call* call) {
    int32_t idle = 0;
    if (!__atomic_compare_exchange_n(&engine->busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return SSMN_BUSY;
    int32_t status = call->streams > 0 && call->steps > 0 ? check_input(*engine, *call) : -1;
    if (status == SSMN_OK) {
        Progress progress;
        const Job job{*engine, *call, progress};
        run_gang(
            static_cast<int32_t>(engine->threads),
            [](const void* body, const Gang& gang, int32_t worker) {
                const Job& task = *static_cast<const Job*>(body);
                Chunk chunk(task.engine, task.call, Crew(task.progress, gang.workers, worker));
                run(chunk);
            },
            &job);
    }
    __atomic_store_n(&engine->busy, 0, __ATOMIC_RELEASE);
    return status < 0 ? SSMN_OK : status;
}

}  // namespace SSMN_PATH
}  // namespace ssmn

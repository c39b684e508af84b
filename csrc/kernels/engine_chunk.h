// What all parts of a step share: the rows of a chunk, where their numbers lie, and products over them.
#ifndef SSMN_ENGINE_CHUNK_H
#define SSMN_ENGINE_CHUNK_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_crew.h"
#include "engine_front.h"
#include "engine_layout.h"
#include "engine_product.h"
#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr float kUnitEpsilon = 1e-12f;
constexpr int64_t kUnitsPerWorker = 4;

// y = x / sqrt(mean x^2 + epsilon) * weight; weight may be null.
inline void normalise(int64_t width, const float* x, float epsilon, const float* weight, float* y) {
    const float factor = 1.0f / std::sqrt(dot(width, x, x) / static_cast<float>(width) + epsilon);
    if (weight == nullptr) {
        for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor;
    } else {
        for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor * weight[i];
    }
}

// To length 1.
inline void make_unit(int64_t width, float* x) {
    scale(width, 1.0f / std::sqrt(dot(width, x, x) + kUnitEpsilon), x);
}

// The steps that are computed side by side, and who computes them.
//
// Rows are steps of streams, those of one step side by side: row = step * streams + stream. A unit writes nothing that
// another of its phase reads, and no sum depends on who takes what.
struct Chunk {
    const ssmn_engine& e;
    const ssmn_engine_call& call;
    Crew crew;
    const Workspace w;
    const int64_t D, wide;  // the hidden width, and what a row of it takes
    const int64_t read_width;
    int64_t* const members;          // [n], the streams' places in the call
    int64_t* const places;           // [rows], the rows' places in the call's arrays
    const bool reads_plainly;        // the input is what the first layer reads
    int64_t n = 0, t = 0, rows = 0;  // streams, steps and rows

    Chunk(const ssmn_engine& engine, const ssmn_engine_call& asked, const Crew& at_work)
        : e(engine),
          call(asked),
          crew(at_work),
          w(workspace_of(engine, at(engine.workspace))),
          D(engine.width),
          wide(padded(engine.width)),
          read_width(ssmn::read_width(engine)),
          members(w.members + crew.worker() * engine.chunk),
          places(w.places + crew.worker() * engine.chunk),
          reads_plainly(engine.is_text || (!has_front(engine) && read_width == engine.inputs)) {}

    const char* at(int64_t offset) const { return static_cast<const char*>(e.arena) + offset; }
    const float* floats(int64_t offset) const { return reinterpret_cast<const float*>(at(offset)); }

    template <typename Body>
    void each(int64_t units, const Body& body) {
        crew.each(units, body);
    }

    const float* input_at(int64_t place) const { return static_cast<const float*>(call.x) + place * e.inputs; }
    bool absent(int64_t place) const { return is_absent(input_at(place), e.inputs); }

    // Stream number i of this block, and a row's place in the call's arrays.
    int64_t stream_of(int64_t i) const { return call.which[members[i]]; }
    float* state_of(int64_t i) const { return e.streams + stream_of(i) * e.stream_floats; }
    int64_t position_of(int64_t row) const { return e.positions[stream_of(row % n)] + row / n; }
    int64_t place_of(int64_t row) const { return places[row]; }
    float elapsed_at(int64_t place) const { return call.elapsed == nullptr ? 1.0f : call.elapsed[place]; }
    float elapsed_of(int64_t row) const { return e.masks_missing ? w.times[row] : elapsed_at(place_of(row)); }
    // Whether anybody asks for a step's output, and where it goes.
    bool is_asked(int64_t place) const { return !call.last_only || place / call.streams == call.steps - 1; }
    float* output_at(int64_t place) const {
        return call.y + (call.last_only ? place % call.streams : place) * e.outputs;
    }
    const ssmn_engine_learning& learning_of(int64_t row) const { return e.learning[stream_of(row % n)]; }

    int64_t points() const { return e.outputs / e.head_parts; }
    bool maps_back() const { return e.is_normalised && e.has_columns; }
    const int64_t* columns() const { return reinterpret_cast<const int64_t*>(at(e.columns)); }

    // y (+)= W x for the rows [first, first + count).
    void product(
        const ssmn_matrix& matrix,
        const Vectors& x,
        int64_t first,
        int64_t count,
        const Target& target,
        int64_t panel_count) {
        const int64_t pairs = (panel_count + 1) / 2, units = std::min<int64_t>(pairs, kUnitsPerWorker * crew.workers());
        each(units, [&](int64_t unit) {
            const int64_t begin = pairs * unit / units * 2, end = pairs * (unit + 1) / units * 2;
            SSMN_PATH::multiply(matrix, at(matrix.offset), x, first, count, begin, std::min(end, panel_count), target);
        });
    }

    void product(const ssmn_matrix& matrix, const Vectors& x, const Target& target) {
        product(matrix, x, 0, rows, target, panels(matrix.rows));
    }
};

// Fills w.hidden, from row `first` on.
inline void normalise_rows(Chunk& c, int64_t weight, int64_t first = 0) {
    c.each(c.rows - first, [&](int64_t unit) {
        const int64_t row = first + unit;
        normalise(
            c.D, c.w.x + row * c.wide, c.e.norm_epsilon, c.floats(weight), c.w.hidden.values + row * c.w.hidden.stride);
        encode(c.w.hidden, row);
    });
}

inline void encode_rows(Chunk& c, const Vectors& x) {
    if (x.codes == nullptr) return;
    c.each(c.rows, [&](int64_t row) { encode(x, row); });
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

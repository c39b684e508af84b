// Where everything lies in an engine's arena; for the files of every path and for those that are compiled once.
#ifndef SSMN_ENGINE_LAYOUT_H
#define SSMN_ENGINE_LAYOUT_H

#include <cstdint>

#include "output_layout.h"
#include "ssmn.h"

namespace ssmn {

// Vectors that a product reads: as floats, and in a quantised engine also as codes, one scale and one sum of codes per
// group. Padding is zeros.
struct Vectors {
    int64_t width;
    int64_t stride;  // floats, and codes, between two of them
    int64_t groups;
    float* values;
    int8_t* codes;
    float* scales;
    int32_t* sums;
};

namespace {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kGroup = 32;          // columns that share a scale
constexpr int64_t kLine = 64;           // bytes
constexpr float kForgotten = -1000.0f;  // exp of it is zero

inline int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

inline int64_t padded(int64_t width) {
    return round_up(width, kPanelRows);
}

inline bool is_quantised(int64_t format) {
    return format == SSMN_INT8 || format == SSMN_INT4;
}

// A panel holds, for 16 rows,
//     float32   [columns][16]
//     bfloat16  [columns / 2][16][2]
//     int8      [groups][16] bfloat16 scales, then [groups][8][16][4] codes: 4 neighbouring columns of every row
//               lie together, which is what the processors' integer dot products take
//     int4      the scales, then [groups][4][16][4] bytes: byte (i, row, c) has the code + 8 of column 4 i + c of the
//               group in its low half, and of column 16 + 4 i + c in its high half
inline int64_t code_bytes(int64_t format) {
    return kGroup * kPanelRows / (format == SSMN_INT4 ? 2 : 1);
}

inline int64_t scales_bytes(int64_t groups) {
    return round_up(groups * kPanelRows * 2, kLine);
}

inline int64_t panel_bytes(int64_t format, int64_t columns) {
    const int64_t groups = (columns + kGroup - 1) / kGroup;
    if (format == SSMN_FLOAT32) return columns * kPanelRows * 4;
    if (format == SSMN_BFLOAT16) return round_up(columns, 2) * kPanelRows * 2;
    return scales_bytes(groups) + groups * code_bytes(format);
}

inline int64_t panels(int64_t rows) {
    return (rows + kPanelRows - 1) / kPanelRows;
}

// What a model of vectors reads: its columns, marks of missing ones, and what is given beside them.
inline int64_t read_width(const ssmn_engine& engine) {
    return engine.inputs * (engine.masks_missing ? 2 : 1) + engine.static_width + engine.future_width;
}

inline bool has_front(const ssmn_engine& engine) {
    return engine.masks_missing != 0 || engine.is_normalised != 0;
}

// Whether the output layer's numbers are the outputs.
inline bool is_plain(const ssmn_engine& engine) {
    return !has_front(engine) && engine.head_kind == SSMN_POINT && engine.readout == SSMN_NO_READOUT;
}

// The parts of a read-out's state, in floats from its start.
struct ReadoutPlaces {
    int64_t outputs;       // O
    int64_t width;         // F
    int64_t float_width;   // F16
    int64_t double_width;  // F8
    int64_t prediction;
    int64_t memory;
    int64_t floats;  // of all
};

inline ReadoutPlaces readout_places(const ssmn_engine& engine) {
    ReadoutPlaces p{};
    if (engine.readout == SSMN_NO_READOUT) return p;
    const bool reads_hidden = engine.readout_features != SSMN_READS_INPUTS;
    const bool reads_inputs = engine.readout_features != SSMN_READS_HIDDEN;
    p.outputs = engine.outputs / engine.head_parts;
    p.width = (reads_hidden ? engine.width : 0) + (reads_inputs ? read_width(engine) : 0) + 1;
    p.float_width = padded(p.width);
    p.double_width = round_up(p.width, 8);
    p.prediction = p.float_width;
    p.memory = p.prediction + padded(p.outputs);
    const int64_t squares = (p.outputs + 2 * p.width) * p.double_width + 8;
    p.floats = p.memory + (engine.readout == SSMN_LMS ? p.outputs * p.float_width : 2 * squares);
    return p;
}

// How an output's column lies at a step.
struct Lie {
    double mean, scale;  // scale is never 0
};

// What a call works with, for `chunk` rows.
struct Workspace {
    float* x;             // [chunk, D16] the residual stream
    Vectors context;      // 4 D, what the encoder reads
    Vectors hidden;       // D
    Vectors previous;     // D, the plastic layer's hidden vector before
    Vectors mixed;        // D, what the output projection reads
    Vectors inner;        // the feed-forward's inner width
    Vectors thought;      // D, of the encoder and the chat
    float* parts;         // [chunk, part_stride] q, k, v or q, v, gate
    float* keys;          // [chunk, D16]
    float* gates;         // [chunk, gate_stride]
    float* key_gates;     // [chunk, gate_stride]
    float* coefficients;  // [chunk, H, 3] write, erase, keep
    float* strengths;     // [chunk] eta_scale times the base plasticity, at most 1/2
    float* reads;         // [chunk, D16]
    float* answers;       // [chunk, D16] mixed answers of the chat
    float* cosines;       // [chunk, head width / 2]
    float* sines;
    float* scores;       // [threads, score_floats]
    float* logits;       // [chunk, outputs] unless the output layer's numbers are the outputs
    float* errors;       // [threads, error_floats] what the output memory works with
    int64_t* members;    // [threads, chunk] streams of a block, by their number in the call
    int64_t* places;     // [threads, chunk] rows of a chunk, by their place in the call
    float* read;         // [chunk, read_width], of vectors with anything but plain columns
    float* times;        // [chunk] elapsed, with the time of absent rows, if missing values are masked
    float* targets;      // [chunk, O] in the units of the outputs, if there is a read-out
    Lie* lies;           // [chunk, O] of the outputs, if they are mapped back
    float* features;     // [threads, F16] of the read-out
    float* corrections;  // [threads, 3 O16] its corrections, the points they correct, and errors
    double* systems;     // [threads, 6 F8]
    int64_t feature_stride, correction_stride, system_stride;
    int64_t part_stride, gate_stride, score_floats, error_floats;
    int64_t bytes;
};

constexpr int64_t kQueryTile = 6;

class Carver {
  public:
    explicit Carver(const void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

    template <typename T>
    T* take(int64_t count) {
        T* found = reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(used_));
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kLine);
        return found;
    }

    Vectors vectors(int64_t count, int64_t width, bool quantised) {
        Vectors made{};
        made.width = width;
        made.stride = round_up(width, kGroup);
        made.groups = made.stride / kGroup;
        made.values = take<float>(count * made.stride);
        if (quantised) {
            made.codes = take<int8_t>(count * made.stride);
            made.scales = take<float>(count * made.groups);
            made.sums = take<int32_t>(count * made.groups);
        }
        return made;
    }

    int64_t used() const { return used_; }

  private:
    uintptr_t base_;
    int64_t used_ = 0;
};

inline int64_t gate_rows(const ssmn_engine& engine) {
    const int64_t mix = engine.chat_rounds > 0 ? engine.chat_rounds + 1 : 0;
    return engine.memory_heads * (engine.has_erasure ? 3 : 2) + mix;
}

inline Workspace workspace_of(const ssmn_engine& engine, const void* base) {
    Carver carver(base);
    Workspace w{};
    const int64_t D = engine.width, rows = engine.chunk, wide = padded(D);
    const bool quantised = is_quantised(engine.format);
    const int64_t kv = padded(D / engine.query_heads * engine.key_heads);
    w.part_stride = wide + (2 * kv > 2 * wide ? 2 * kv : 2 * wide);
    w.gate_stride = padded(gate_rows(engine));
    w.score_floats = kQueryTile * (engine.ring + 2 * kPanelRows);
    w.x = carver.take<float>(rows * wide);
    if (engine.has_encoder) w.context = carver.vectors(rows, 4 * D, quantised);
    w.hidden = carver.vectors(rows, D, quantised);
    w.previous = carver.vectors(rows, D, quantised);
    w.mixed = carver.vectors(rows, D, quantised);
    w.inner = carver.vectors(rows, engine.inner_width, quantised);
    w.thought = carver.vectors(rows, D, quantised);
    w.parts = carver.take<float>(rows * w.part_stride);
    w.keys = carver.take<float>(rows * wide);
    w.gates = carver.take<float>(rows * w.gate_stride);
    w.key_gates = carver.take<float>(rows * w.gate_stride);
    w.coefficients = carver.take<float>(rows * engine.memory_heads * 3);
    w.strengths = carver.take<float>(rows);
    w.reads = carver.take<float>(rows * wide);
    w.answers = carver.take<float>(rows * wide);
    w.cosines = carver.take<float>(rows * D);
    w.sines = carver.take<float>(rows * D);
    w.scores = carver.take<float>(engine.threads * w.score_floats);
    if (engine.has_output_memory) {
        w.error_floats = round_up(output_workspace_floats(engine.outputs, D, engine.output_threshold), kPanelRows);
        w.logits = carver.take<float>(rows * engine.outputs);
        w.errors = carver.take<float>(engine.threads * w.error_floats);
    }
    w.members = carver.take<int64_t>(engine.threads * rows);
    w.places = carver.take<int64_t>(engine.threads * rows);
    if (engine.is_text == 0 && !is_plain(engine)) {
        const ReadoutPlaces places = readout_places(engine);
        const int64_t points = engine.outputs / engine.head_parts;
        w.logits = carver.take<float>(rows * engine.outputs);
        w.times = carver.take<float>(rows);
        w.targets = carver.take<float>(rows * points);
        w.lies = carver.take<Lie>(rows * points);
        w.feature_stride = places.float_width;
        w.correction_stride = 3 * padded(points);
        w.system_stride = 6 * places.double_width;
        w.features = carver.take<float>(engine.threads * w.feature_stride);
        w.corrections = carver.take<float>(engine.threads * w.correction_stride);
        w.systems = carver.take<double>(engine.threads * w.system_stride);
    }
    if (engine.is_text == 0) w.read = carver.take<float>(rows * read_width(engine));
    w.bytes = carver.used();
    return w;
}

}  // namespace
}  // namespace ssmn

#endif

// A whole model, step by step: every worker of a gang runs the same program, phase by phase, and takes units of work
// until a phase has none left. A worker that the system holds up between two units delays nobody.
//
// Rows are steps of streams, those of one step side by side: row = step * streams + stream. A unit writes nothing that
// another of its phase reads, and no sum depends on who takes what.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine_attention.h"
#include "engine_front.h"
#include "engine_head.h"
#include "engine_layout.h"
#include "engine_memory.h"
#include "engine_product.h"
#include "engine_readout.h"
#include "output_memory.h"
#include "path.h"
#include "pool.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr float kUnitEpsilon = 1e-12f;
constexpr int64_t kContext = 4;        // tokens that the encoder mixes
constexpr int64_t kMemoryColumns = 4;  // of 16, that one worker steps at a time
constexpr int64_t kAttentionSteps = 16;
constexpr int64_t kUnitsPerWorker = 4;

// Where a gang stands: the phase in the upper half, the next unit in the lower one; and how many units are done.
struct Progress {
    std::atomic<uint64_t> claim{0};
    std::atomic<int64_t> done{0};
};

float sigmoid(float x) {
    return 1.0f / (1.0f + std::exp(-x));
}

// y = x / sqrt(mean x^2 + epsilon) * weight; weight may be null.
void normalise(int64_t width, const float* x, float epsilon, const float* weight, float* y) {
    const float factor = 1.0f / std::sqrt(dot(width, x, x) / static_cast<float>(width) + epsilon);
    if (weight == nullptr) {
        for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor;
    } else {
        for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor * weight[i];
    }
}

// To length 1.
void make_unit(int64_t width, float* x) {
    scale(width, 1.0f / std::sqrt(dot(width, x, x) + kUnitEpsilon), x);
}

class Engine {
  public:
    Engine(const ssmn_engine& engine, const ssmn_engine_call& call, Progress& progress, int32_t workers, int32_t worker)
        : e_(engine),
          call_(call),
          progress_(progress),
          workers_(workers),
          worker_(worker),
          w_(workspace_of(engine, at(engine.workspace))),
          D_(engine.width),
          wide_(padded(engine.width)),
          read_width_(read_width(engine)),
          members_(w_.members + worker * engine.chunk),
          places_(w_.places + worker * engine.chunk),
          reads_plainly_(engine.is_text || (!has_front(engine) && read_width_ == engine.inputs)) {}

    void run() {
        const bool has_gaps = e_.masks_missing && any_absent();
        for (int64_t first = 0; first < call_.streams; first += e_.chunk) {
            const int64_t last = std::min(first + e_.chunk, call_.streams);
            if (!has_gaps) {
                n_ = last - first;
                for (int64_t i = 0; i < n_; ++i) members_[i] = first + i;
                run_whole();
            } else if (call_.steps == 1) {
                n_ = 0;
                for (int64_t i = first; i < last; ++i)
                    if (!absent(i)) members_[n_++] = i;
                if (n_ > 0) run_whole();
            } else {
                n_ = 1;  // the streams have their gaps in different places
                for (members_[0] = first; members_[0] < last; ++members_[0]) run_present();
            }
        }
        if (e_.masks_missing) each(call_.streams, [&](int64_t member) { end_gaps(member); });
    }

  private:
    const char* at(int64_t offset) const { return static_cast<const char*>(e_.arena) + offset; }
    const float* floats(int64_t offset) const { return reinterpret_cast<const float*>(at(offset)); }

    // Calls body(unit) for all units, each on some worker, and returns when all are done.
    template <typename Body>
    void each(int64_t units, const Body& body) {
        if (workers_ == 1) {
            for (int64_t unit = 0; unit < units; ++unit) body(unit);
            return;
        }
        if (units == 0) return;
        const uint32_t phase = phase_++;
        for (int64_t looks = 0;;) {
            uint64_t claim = progress_.claim.load(std::memory_order_acquire);
            if (static_cast<uint32_t>(claim >> 32) != phase) return;
            const int64_t unit = static_cast<int64_t>(claim & 0xffffffffu);
            if (unit >= units) {
                relax(looks++);
                continue;
            }
            if (!progress_.claim.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel)) continue;
            body(unit);
            if (progress_.done.fetch_add(1, std::memory_order_acq_rel) + 1 < units) continue;
            progress_.done.store(0, std::memory_order_relaxed);
            progress_.claim.store(static_cast<uint64_t>(phase + 1u) << 32, std::memory_order_release);
            return;
        }
    }

    // All steps of the block's streams.
    void run_whole() {
        const int64_t most = e_.chunk / n_;
        for (int64_t step = 0; step < call_.steps; step += t_) {
            t_ = std::min(most, call_.steps - step);
            rows_ = n_ * t_;
            for (int64_t row = 0; row < rows_; ++row)
                places_[row] = (step + row / n_) * call_.streams + members_[row % n_];
            run_chunk();
        }
    }

    // The steps of the block's only stream that are not absent.
    void run_present() {
        int64_t place = members_[0];
        const int64_t end = call_.steps * call_.streams;
        while (place < end) {
            for (t_ = 0; place < end && t_ < e_.chunk; place += call_.streams)
                if (!absent(place)) places_[t_++] = place;
            rows_ = t_;
            if (t_ > 0) run_chunk();
        }
    }

    const float* input_at(int64_t place) const { return static_cast<const float*>(call_.x) + place * e_.inputs; }
    bool absent(int64_t place) const { return is_absent(input_at(place), e_.inputs); }

    bool any_absent() const {
        for (int64_t place = 0; place < call_.steps * call_.streams; ++place)
            if (absent(place)) return true;
        return false;
    }

    // Stream number i of this block, and a row's place in the call's arrays.
    int64_t stream_of(int64_t i) const { return call_.which[members_[i]]; }
    float* state_of(int64_t i) const { return e_.streams + stream_of(i) * e_.stream_floats; }
    int64_t position_of(int64_t row) const { return e_.positions[stream_of(row % n_)] + row / n_; }
    int64_t place_of(int64_t row) const { return places_[row]; }
    float elapsed_at(int64_t place) const { return call_.elapsed == nullptr ? 1.0f : call_.elapsed[place]; }
    float elapsed_of(int64_t row) const { return e_.masks_missing ? w_.times[row] : elapsed_at(place_of(row)); }
    // Whether anybody asks for a step's output, and where it goes.
    bool is_asked(int64_t place) const { return !call_.last_only || place / call_.streams == call_.steps - 1; }
    float* output_at(int64_t place) const {
        return call_.y + (call_.last_only ? place % call_.streams : place) * e_.outputs;
    }
    const ssmn_engine_learning& learning_of(int64_t row) const { return e_.learning[stream_of(row % n_)]; }

    // y (+)= W x for the rows [first, first + count).
    void product(
        const ssmn_matrix& matrix,
        const Vectors& x,
        int64_t first,
        int64_t count,
        const Target& target,
        int64_t panel_count) {
        const int64_t pairs = (panel_count + 1) / 2, units = std::min<int64_t>(pairs, kUnitsPerWorker * workers_);
        each(units, [&](int64_t unit) {
            const int64_t begin = pairs * unit / units * 2, end = pairs * (unit + 1) / units * 2;
            SSMN_PATH::multiply(matrix, at(matrix.offset), x, first, count, begin, std::min(end, panel_count), target);
        });
    }

    void product(const ssmn_matrix& matrix, const Vectors& x, const Target& target) {
        product(matrix, x, 0, rows_, target, panels(matrix.rows));
    }

    void run_chunk() {
        read_input();
        for (int64_t i = 0; i < e_.layer_count; ++i) {
            const ssmn_engine_layer& layer = e_.layers[i];
            if (layer.plastic != 0) {
                remember(layer);
            } else {
                look(layer);
            }
            product(layer.output, w_.mixed, {w_.x, wide_, D_, nullptr, Then::kAdd});
            feed_forward(layer);
        }
        write_output();
        each(1, [&](int64_t) {
            for (int64_t i = 0; i < n_; ++i) e_.positions[stream_of(i)] += t_;
        });
    }

    void read_input() {
        each(rows_, [&](int64_t row) { turn(row); });
        if (e_.is_text) {
            each(rows_, [&](int64_t row) {
                embed(static_cast<const int64_t*>(call_.x)[place_of(row)], w_.x + row * wide_);
            });
            if (e_.has_encoder) encode_thoughts();
            return;
        }
        if (!reads_plainly_) each(n_, [&](int64_t i) { read_front(i); });
        // The input is narrow and in float32: column by column.
        const float* bias = floats(e_.input_bias);
        each(rows_, [&](int64_t row) {
            Vectors x{};
            x.width = x.stride = read_width_;
            x.values = reads_plainly_ ? const_cast<float*>(input_at(place_of(row))) : w_.read + row * read_width_;
            SSMN_PATH::multiply(
                e_.input, at(e_.input.offset), x, 0, 1, 0, panels(D_),
                {w_.x + row * wide_, wide_, D_, bias, Then::kStore});
        });
    }

    // What the steps of one stream bring: columns, marks of missing values, static and future inputs.
    void read_front(int64_t i) {
        const Front front{state_of(i) + e_.front, e_.is_normalised ? e_.inputs : 0};
        for (int64_t t = 0; t < t_; ++t) {
            const int64_t row = t * n_ + i, place = place_of(row);
            const float* x = input_at(place);
            if (e_.masks_missing) w_.times[row] = waited(place);
            if (e_.is_normalised) standardise_target(front, row);
            float* to = w_.read + row * read_width_;
            for (int64_t c = 0; c < e_.inputs; ++c) {
                const bool is_missing = x[c] != x[c];
                to[c] = is_missing ? 0.0f : x[c];
                if (e_.is_normalised && !is_missing)
                    to[c] = static_cast<float>(standardised(x[c], front.column(c).observe(x[c], e_.norm_rate)));
                if (e_.masks_missing) to[e_.inputs + c] = is_missing ? 1.0f : 0.0f;
            }
            to += e_.inputs * (e_.masks_missing ? 2 : 1);
            to = std::copy_n(call_.fixed + members_[i] * e_.static_width, e_.static_width, to);
            std::copy_n(call_.future + place * e_.future_width, e_.future_width, to);
            if (maps_back()) {
                for (int64_t o = 0; o < points(); ++o) w_.lies[row * points() + o] = front.column(columns()[o]).lie();
            }
        }
    }

    // A target in the units of the outputs, by the statistics that its prediction was mapped back with.
    void standardise_target(const Front& front, int64_t row) {
        if (call_.target == nullptr || !maps_back()) return;
        for (int64_t o = 0; o < points(); ++o)
            w_.targets[row * points() + o] = static_cast<float>(
                standardised(call_.target[place_of(row) * points() + o], front.column(columns()[o]).lie()));
    }

    int64_t points() const { return e_.outputs / e_.head_parts; }
    bool maps_back() const { return e_.is_normalised && e_.has_columns; }
    const int64_t* columns() const { return reinterpret_cast<const int64_t*>(at(e_.columns)); }

    float& pending_of(int64_t member) const {
        float* numbers = e_.streams + call_.which[member] * e_.stream_floats + e_.front;
        return Front{numbers, e_.is_normalised ? e_.inputs : 0}.pending();
    }

    // The time since the last row that was there, at `place`; what was pending before the call counts if none was.
    float waited(int64_t place) const {
        int64_t from = place;
        while (from >= call_.streams && absent(from - call_.streams)) from -= call_.streams;
        float time = from < call_.streams ? pending_of(place % call_.streams) : 0.0f;
        for (; from <= place; from += call_.streams) time += elapsed_at(from);
        return time;
    }

    // The outputs of absent rows, and the time that is pending after the last step.
    void end_gaps(int64_t member) {
        bool is_pending = false;
        int64_t place = member;
        for (int64_t step = 0; step < call_.steps; ++step, place += call_.streams) {
            is_pending = absent(place);
            if (is_pending && is_asked(place)) std::fill_n(output_at(place), e_.outputs, 0.0f);
        }
        pending_of(member) = is_pending ? waited(place - call_.streams) : 0.0f;
    }

    // The rotary angles of a row, in double precision: a stream has no last position.
    void turn(int64_t row) const {
        if (!e_.has_rotary) return;
        const int64_t half = D_ / e_.query_heads / 2;
        const double* frequencies = reinterpret_cast<const double*>(at(e_.frequencies));
        const double position = static_cast<double>(position_of(row));
        for (int64_t i = 0; i < half; ++i) {
            w_.cosines[row * half + i] = static_cast<float>(std::cos(position * frequencies[i]));
            w_.sines[row * half + i] = static_cast<float>(std::sin(position * frequencies[i]));
        }
    }

    void embed(int64_t token, float* x) const {
        const ssmn_matrix& m = e_.input;
        const char* panel = at(m.offset) + token / kPanelRows * panel_bytes(m.format, D_);
        const int64_t row = token % kPanelRows;
        if (m.format == SSMN_FLOAT32) {
            const float* from = reinterpret_cast<const float*>(panel);
            for (int64_t j = 0; j < D_; ++j) x[j] = from[j * kPanelRows + row];
        } else if (m.format == SSMN_BFLOAT16) {
            const uint16_t* from = reinterpret_cast<const uint16_t*>(panel);
            for (int64_t j = 0; j < D_; ++j) x[j] = widen(from[(j / 2 * kPanelRows + row) * 2 + j % 2]);
        } else {
            const int64_t groups = (D_ + kGroup - 1) / kGroup, bytes = code_bytes(m.format);
            const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
            const bool four = m.format == SSMN_INT4;
            for (int64_t j = 0; j < D_; ++j) {
                const int64_t in_group = j % kGroup, column = four ? in_group % (kGroup / 2) : in_group;
                const uint8_t byte =
                    panel[scales_bytes(groups) + j / kGroup * bytes + column / 4 * 64 + row * 4 + column % 4];
                const int32_t code =
                    !four ? static_cast<int8_t>(byte) : (in_group == column ? byte & 15 : byte >> 4) - 8;
                x[j] = widen(scales[j / kGroup * kPanelRows + row]) * static_cast<float>(code);
            }
        }
    }

    // thought = e + W_2 (silu(W_1 c) * W_3 c), c = the embeddings of the last four tokens, newest first.
    void encode_thoughts() {
        each(rows_, [&](int64_t row) {
            const float* before = state_of(row % n_) + e_.front;
            float* context = w_.context.values + row * w_.context.stride;
            for (int64_t age = 0; age < kContext; ++age) {
                const int64_t step = row / n_ - age;
                const float* from = step >= 0 ? w_.x + (row - age * n_) * wide_ : before + (kContext - 1 + step) * D_;
                std::copy_n(from, D_, context + age * D_);
            }
            encode(w_.context, row);
        });
        each(n_, [&](int64_t i) {
            const float* context = w_.context.values + ((t_ - 1) * n_ + i) * w_.context.stride;
            for (int64_t age = 0; age < kContext - 1; ++age)
                std::copy_n(context + age * D_, D_, state_of(i) + e_.front + (kContext - 2 - age) * D_);
        });
        product(e_.encoder_expand, w_.context, {w_.thought.values, w_.thought.stride, D_, nullptr, Then::kGate});
        encode_rows(w_.thought);
        product(e_.encoder_contract, w_.thought, {w_.x, wide_, D_, nullptr, Then::kAdd});
    }

    void normalise_rows(int64_t weight, int64_t first = 0) {
        each(rows_ - first, [&](int64_t unit) {
            const int64_t row = first + unit;
            normalise(
                D_, w_.x + row * wide_, e_.norm_epsilon, floats(weight), w_.hidden.values + row * w_.hidden.stride);
            encode(w_.hidden, row);
        });
    }

    void feed_forward(const ssmn_engine_layer& layer) {
        normalise_rows(layer.ffn_norm);
        product(layer.expand, w_.hidden, {w_.inner.values, w_.inner.stride, e_.inner_width, nullptr, Then::kGate});
        encode_rows(w_.inner);
        product(layer.contract, w_.inner, {w_.x, wide_, D_, nullptr, Then::kAdd});
    }

    void encode_rows(const Vectors& x) {
        if (x.codes == nullptr) return;
        each(rows_, [&](int64_t row) { encode(x, row); });
    }

    void write_output() {
        if (e_.has_output_memory) return write_adapted();
        if (!is_plain(e_) && !e_.is_text) return write_prediction();
        int64_t first = 0;
        if (call_.last_only) {
            if (!is_asked(place_of(rows_ - 1))) return;
            first = (t_ - 1) * n_;
        }
        normalise_rows(e_.norm, first);
        const float* bias = e_.output_bias == 0 ? nullptr : floats(e_.output_bias);
        // Rows of one step lie side by side in the result, and so do those of several if all streams are in this block.
        const int64_t together = n_ == call_.streams ? rows_ - first : n_;
        for (int64_t row = first; row < rows_; row += together)
            product(
                e_.output, w_.hidden, row, together,
                {output_at(place_of(row)), e_.outputs, e_.outputs, bias, Then::kStore}, panels(e_.outputs));
    }

    // The head's values, corrected by the read-out and mapped back to units.
    void write_prediction() {
        const bool learns = e_.readout != SSMN_NO_READOUT;
        if (!learns && call_.last_only && !is_asked(place_of(rows_ - 1))) return;
        normalise_rows(e_.norm);
        product(e_.output, w_.hidden, {w_.logits, e_.outputs, e_.outputs, floats(e_.output_bias), Then::kStore});
        const Head head{e_.head_kind, e_.head_parts, e_.head_middle, e_.gaps == 0 ? nullptr : floats(e_.gaps)};
        each(rows_, [&](int64_t row) {
            for (int64_t o = 0; o < points(); ++o) head.spread(w_.logits + row * e_.outputs + o * e_.head_parts);
        });
        if (learns) each(n_, [&](int64_t i) { read_out(head, i); });
        each(rows_, [&](int64_t row) {
            const int64_t place = place_of(row);
            if (!is_asked(place)) return;
            float* values = w_.logits + row * e_.outputs;
            for (int64_t o = 0; o < points() && maps_back(); ++o)
                head.map_back(w_.lies[row * points() + o], values + o * e_.head_parts);
            std::copy_n(values, e_.outputs, output_at(place));
        });
    }

    // The steps of one stream through its read-out.
    void read_out(const Head& head, int64_t i) {
        const int64_t O = points();
        float* corrections = w_.corrections + worker_ * w_.correction_stride;
        float* said = corrections + padded(O);
        const Readout readout{
            e_.readout,       readout_places(e_),    e_.readout_eta,   e_.readout_log_keep,
            e_.readout_ridge, state_of(i) + e_.head, said + padded(O), w_.systems + worker_ * w_.system_stride};
        const bool learns = call_.target != nullptr && !learning_of(i).frozen;
        for (int64_t t = 0; t < t_; ++t) {
            const int64_t row = t * n_ + i;
            float* values = w_.logits + row * e_.outputs;
            for (int64_t o = 0; o < O; ++o) said[o] = values[o * e_.head_parts + head.point()];
            const float* target = !learns       ? nullptr
                                  : maps_back() ? w_.targets + row * O
                                                : call_.target + place_of(row) * O;
            float* key = w_.features + worker_ * w_.feature_stride;
            put_features(row, key);
            readout.step(target, elapsed_of(row), key, said, corrections);
            for (int64_t o = 0; o < O; ++o) head.shift(corrections[o], values + o * e_.head_parts);
        }
    }

    // What the read-out sees of a row: the hidden vector at unit length, what was read, or both.
    void put_features(int64_t row, float* to) const {
        if (e_.readout_features != SSMN_READS_INPUTS) {
            std::copy_n(w_.hidden.values + row * w_.hidden.stride, D_, to);
            make_unit(D_, to);
            to += D_;
        }
        if (e_.readout_features == SSMN_READS_HIDDEN) return;
        const float* read = reads_plainly_ ? input_at(place_of(row)) : w_.read + row * read_width_;
        const float factor = 1.0f / std::sqrt(static_cast<float>(read_width_));
        for (int64_t c = 0; c < read_width_; ++c) to[c] = read[c] * factor;
    }

    // Every step is predicted, asked for or not, since the output memory learns from what was wrong.
    void write_adapted() {
        normalise_rows(e_.norm);
        product(e_.output, w_.hidden, {w_.logits, e_.outputs, e_.outputs, nullptr, Then::kStore});
        each(n_, [&](int64_t i) { adapt(i); });
        each(rows_, [&](int64_t row) {
            const int64_t place = place_of(row);
            if (is_asked(place)) std::copy_n(w_.logits + row * e_.outputs, e_.outputs, output_at(place));
        });
    }

    // The steps of one stream through its output memory.
    void adapt(int64_t i) {
        const ssmn_engine_learning& learning = learning_of(i);
        const bool closed = learning.frozen != 0;
        const float eta = closed ? 0.0f : learning.output_eta < 0.0f ? e_.output_eta : learning.output_eta;
        const float rate = closed ? 0.0f : learning.output_rate < 0.0f ? e_.output_rate : learning.output_rate;
        float* memory = state_of(i) + e_.head;
        float* key = memory + e_.outputs * wide_;
        float* prediction = key + wide_;
        float* ratio = prediction + e_.outputs;
        const OutputStreamState state{memory, wide_, key, prediction, ratio, ratio + e_.outputs};
        OutputMemory output(
            e_.outputs, D_, e_.output_threshold, e_.output_switch, w_.errors + worker_ * w_.error_floats);
        OutputStep steps[kOutputChunk];
        int64_t count = 0;
        for (int64_t t = 0; t < t_; ++t) {
            const int64_t row = t * n_ + i;
            float* unit = w_.keys + row * wide_;
            std::copy_n(w_.hidden.values + row * w_.hidden.stride, D_, unit);
            make_unit(D_, unit);
            const float elapsed = elapsed_of(row);
            steps[count++] = {
                w_.logits + row * e_.outputs, unit, static_cast<const int64_t*>(call_.x)[place_of(row)], eta,
                std::max(-rate * elapsed, kForgotten)};
            if (count == kOutputChunk || t + 1 == t_) {
                output.run(steps, count, state);
                count = 0;
            }
        }
    }

    // Window attention: fills w_.mixed.
    void look(const ssmn_engine_layer& layer) {
        normalise_rows(layer.mixer_norm);
        product(layer.input, w_.hidden, {w_.parts, w_.part_stride, layer.input.rows, nullptr, Then::kStore});
        const int64_t heads = e_.key_heads;
        const float* sinks = layer.sinks == 0 ? nullptr : floats(layer.sinks);
        if (t_ == 1) {  // a step's own keys are all that it waits for
            each(n_ * heads, [&](int64_t unit) {
                store_key(layer, unit / heads, unit % heads);
                attend_steps(layer, sinks, unit / heads, unit % heads, 0, 1);
            });
        } else {
            each(rows_, [&](int64_t row) {
                for (int64_t h = 0; h < heads; ++h) store_key(layer, row, h);
            });
            const int64_t pieces = (t_ + kAttentionSteps - 1) / kAttentionSteps;
            each(n_ * heads * pieces, [&](int64_t unit) {
                const int64_t from = unit % pieces * kAttentionSteps, rest = unit / pieces;
                attend_steps(layer, sinks, rest / heads, rest % heads, from, std::min(t_, from + kAttentionSteps));
            });
        }
        encode_rows(w_.mixed);
    }

    Ring ring_of(const ssmn_engine_layer& layer, int64_t stream, int64_t key_head) const {
        const int64_t head = D_ / e_.query_heads, stride = padded(head);
        float* state = state_of(stream) + layer.state;
        return {
            state + key_head * e_.ring * head,
            state + e_.key_heads * e_.ring * head + key_head * e_.ring * stride,
            e_.ring,
            head,
            stride,
        };
    }

    // Rotates one head in place: pairs (i, i + half).
    void rotate(int64_t row, float* x, float factor) const {
        const int64_t head = D_ / e_.query_heads, half = head / 2;
        if (e_.has_rotary) {
            const float* cosine = w_.cosines + row * half;
            const float* sine = w_.sines + row * half;
            for (int64_t i = 0; i < half; ++i) {
                const float first = x[i], second = x[i + half];
                x[i] = first * cosine[i] - second * sine[i];
                x[i + half] = second * cosine[i] + first * sine[i];
            }
        }
        if (factor != 1.0f) scale(head, factor, x);
    }

    // Rotates the queries and the key of one key head, and puts the key into the ring.
    void store_key(const ssmn_engine_layer& layer, int64_t row, int64_t key_head) const {
        const int64_t head = D_ / e_.query_heads, group = e_.query_heads / e_.key_heads;
        float* line = w_.parts + row * w_.part_stride;
        const float factor = 1.0f / std::sqrt(static_cast<float>(head));
        for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) rotate(row, line + h * head, factor);
        float* key = line + wide_ + key_head * head;
        rotate(row, key, 1.0f);
        ring_of(layer, row % n_, key_head)
            .put(position_of(row), key, line + wide_ + padded(head * e_.key_heads) + key_head * head);
    }

    void attend_steps(
        const ssmn_engine_layer& layer, const float* sinks, int64_t stream, int64_t key_head, int64_t from, int64_t to)
        const {
        constexpr int64_t kQueries = 48;
        const int64_t head = D_ / e_.query_heads, group = e_.query_heads / e_.key_heads;
        const Ring ring = ring_of(layer, stream, key_head);
        float* scores = w_.scores + worker_ * w_.score_floats;
        Query queries[kQueries];
        int64_t count = 0;
        for (int64_t step = from; step < to; ++step)
            for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) {
                const int64_t row = step * n_ + stream;
                queries[count++] = {
                    w_.parts + row * w_.part_stride + h * head,
                    w_.mixed.values + row * w_.mixed.stride + h * head,
                    position_of(row),
                    sinks == nullptr ? nullptr : sinks + h,
                };
                if (count == kQueries) {
                    attend_all(ring, queries, count, e_.window, scores, e_.ring + 2 * kPanelRows);
                    count = 0;
                }
            }
        attend_all(ring, queries, count, e_.window, scores, e_.ring + 2 * kPanelRows);
    }

    // Synaptic memory: fills w_.mixed.
    void remember(const ssmn_engine_layer& layer) {
        prepare_memory(layer);
        product(layer.input, w_.hidden, {w_.parts, w_.part_stride, 3 * wide_, nullptr, Then::kStore});
        product(layer.key, e_.pairs_same ? w_.hidden : w_.previous, {w_.keys, wide_, wide_, nullptr, Then::kStore});
        product(layer.gate, w_.hidden, {w_.gates, w_.gate_stride, layer.gate.rows, nullptr, Then::kStore});
        product(
            layer.key_gate, w_.previous, {w_.key_gates, w_.gate_stride, layer.key_gate.rows, nullptr, Then::kStore});
        each(rows_, [&](int64_t row) { open_gates(layer, row); });
        each(n_, [&](int64_t i) {
            std::copy_n(w_.hidden.values + ((t_ - 1) * n_ + i) * w_.hidden.stride, D_, previous_of(layer, i));
        });
        if (e_.chat_rounds > 0) {
            for (int64_t step = 0; step < t_; ++step) chat(layer, step);
        } else {
            step_memory(layer, 0, t_);
            each(rows_, [&](int64_t row) {
                float* answer = w_.mixed.values + row * w_.mixed.stride;
                normalise_read(layer, row, answer);
                gate_answer(layer, row, answer);
                encode(w_.mixed, row);
            });
        }
    }

    float* previous_of(const ssmn_engine_layer& layer, int64_t stream) const {
        return state_of(stream) + layer.state + D_ * padded(D_ / e_.memory_heads);
    }

    // The hidden vectors, and beside each the one before.
    void prepare_memory(const ssmn_engine_layer& layer) {
        each(rows_, [&](int64_t row) {
            float* hidden = w_.hidden.values + row * w_.hidden.stride;
            normalise(D_, w_.x + row * wide_, e_.norm_epsilon, floats(layer.mixer_norm), hidden);
            encode(w_.hidden, row);
            if (row < n_) {
                std::copy_n(previous_of(layer, row), D_, w_.previous.values + row * w_.previous.stride);
                encode(w_.previous, row);
            }
            if (row + n_ < rows_) {
                std::copy_n(hidden, D_, w_.previous.values + (row + n_) * w_.previous.stride);
                encode(w_.previous, row + n_);
            }
        });
    }

    // Unit keys and queries, and the coefficients of every head.
    void open_gates(const ssmn_engine_layer& layer, int64_t row) const {
        const int64_t H = e_.memory_heads, K = D_ / H;
        const ssmn_engine_learning& learning = learning_of(row);
        const float* gates = w_.gates + row * w_.gate_stride;
        const float* key_gates = w_.key_gates + row * w_.gate_stride;
        const float* decay_gates = gates + (e_.has_erasure ? 2 * H : H);
        const float base = learning.plasticity_eta >= 0.0f ? learning.plasticity_eta : e_.plasticity_eta;
        const float threshold = learning.write_threshold >= 0.0f ? learning.write_threshold : e_.write_threshold;
        const float elapsed = elapsed_of(row);
        w_.strengths[row] = std::min(learning.eta_scale * base, 0.5f);  // eta never exceeds 1
        for (int64_t h = 0; h < H; ++h) {
            make_unit(K, w_.keys + row * wide_ + h * K);
            make_unit(K, w_.parts + row * w_.part_stride + h * K);
            const float swing = sigmoid(gates[h] + floats(layer.importance_bias)[h] + key_gates[h]);
            const float importance = std::min(2.0f * e_.plasticity_eta * swing, 1.0f);
            const float eta = std::min(learning.eta_scale * std::min(2.0f * base * swing, 1.0f), 1.0f);
            const float rate = learning.decay_rate >= 0.0f ? learning.decay_rate : floats(layer.decay_rate)[h];
            const float log_keep = -rate * softplus(decay_gates[h] + kUnitDeviation) * learning.decay_scale * elapsed;
            float* c = w_.coefficients + (row * H + h) * 3;
            const bool closed = learning.frozen || importance < threshold;
            c[0] = closed ? 0.0f : eta;
            c[1] = closed || e_.is_hebbian ? 0.0f : eta;
            if (e_.has_erasure && !closed)
                c[1] = sigmoid(gates[H + h] + floats(layer.erasure_bias)[h] + key_gates[H + h]);
            c[2] = closed ? 1.0f : std::exp(std::max(log_keep, kForgotten));
        }
    }

    // Writes the steps [from, to) into the memories, and reads them into w_.reads.
    void step_memory(const ssmn_engine_layer& layer, int64_t from, int64_t to) {
        const int64_t H = e_.memory_heads, K = D_ / H, V = padded(K);
        const int64_t pieces = (V / kWide + kMemoryColumns - 1) / kMemoryColumns;
        each(n_ * H * pieces, [&](int64_t unit) {
            const int64_t stream = unit / (H * pieces), h = unit / pieces % H;
            const int64_t column = unit % pieces * kMemoryColumns * kWide;
            const int64_t columns = std::min(kMemoryColumns, (V - column) / kWide);
            float* memory = state_of(stream) + layer.state + h * K * V + column;
            for (int64_t step = from; step < to; ++step) {
                const int64_t row = step * n_ + stream, left = std::min(K - column, columns * kWide);
                const float* parts = w_.parts + row * w_.part_stride + h * K;
                const float* k = w_.keys + row * wide_ + h * K;
                const float* c = w_.coefficients + (row * H + h) * 3;
                float v[kMemoryColumns * kWide] = {}, o[kMemoryColumns * kWide];
                std::copy_n(parts + wide_ + column, left, v);
                const Coefficients strength{c[0], c[1], c[2]};
                if (columns == 4) write_and_read<4>(memory, V, K, k, parts, v, strength, o);
                if (columns == 3) write_and_read<3>(memory, V, K, k, parts, v, strength, o);
                if (columns == 2) write_and_read<2>(memory, V, K, k, parts, v, strength, o);
                if (columns == 1) write_and_read<1>(memory, V, K, k, parts, v, strength, o);
                std::copy_n(o, left, w_.reads + row * wide_ + h * K + column);
            }
        });
    }

    // Asks the memories again, for the streams of one step; the questions stand where the queries were.
    void ask_again(const ssmn_engine_layer& layer, int64_t step) {
        const int64_t H = e_.memory_heads, K = D_ / H, V = padded(K), pieces = V / kWide;
        each(n_ * H * pieces, [&](int64_t unit) {
            const int64_t stream = unit / (H * pieces), h = unit / pieces % H, column = unit % pieces * kWide;
            const int64_t row = step * n_ + stream;
            float o[kWide];
            read_memory<1>(
                state_of(stream) + layer.state + h * K * V + column, V, K, w_.parts + row * w_.part_stride + h * K, o);
            std::copy_n(o, std::min(K - column, kWide), w_.reads + row * wide_ + h * K + column);
        });
    }

    // norm(o) = o / sqrt(mean o^2 + floor), per head: a read that is short beside the write strength is faded.
    void normalise_read(const ssmn_engine_layer& layer, int64_t row, float* answer) const {
        const int64_t H = e_.memory_heads, K = D_ / H;
        const float shortest = e_.read_floor * w_.strengths[row];
        for (int64_t h = 0; h < H; ++h)
            normalise(
                K, w_.reads + row * wide_ + h * K, shortest * shortest + kUnitEpsilon, floats(layer.read_norm),
                answer + h * K);
    }

    // answer = answer * silu(W_g h + bias)
    void gate_answer(const ssmn_engine_layer& layer, int64_t row, float* answer) const {
        const float* gate = w_.parts + row * w_.part_stride + 2 * wide_;
        const float* bias = floats(layer.gate_bias);
        int64_t i = 0;
        for (; i + kLanes <= D_; i += kLanes) {
            const Vec x = load(gate + i) + load(bias + i);
            store(answer + i, load(answer + i) * (x * SSMN_PATH::sigmoid(x)));
        }
        if (i == D_) return;
        const Vec x = load_part(gate + i, D_ - i) + load_part(bias + i, D_ - i);
        store_part(answer + i, load_part(answer + i, D_ - i) * (x * SSMN_PATH::sigmoid(x)), D_ - i);
    }

    // One step of all streams: write, read, and ask again with what was answered.
    void chat(const ssmn_engine_layer& layer, int64_t step) {
        const int64_t R = e_.chat_rounds, H = e_.memory_heads, K = D_ / H, first = step * n_;
        const int64_t mix = (e_.has_erasure ? 3 : 2) * H;
        step_memory(layer, step, step + 1);
        for (int64_t round = 0;; ++round) {
            each(n_, [&](int64_t unit) {
                const int64_t row = first + unit;
                float* answer = w_.mixed.values + row * w_.mixed.stride;
                float* total = w_.answers + row * wide_;
                normalise_read(layer, row, answer);
                encode(w_.mixed, row);
                const float weight = share_of_round(w_.gates + row * w_.gate_stride + mix, round);
                if (round == 0) std::fill_n(total, D_, 0.0f);
                add_scaled(D_, weight, answer, total);
            });
            if (round == R) break;
            product(
                layer.output, w_.mixed, first, n_,
                {w_.thought.values + first * w_.thought.stride, w_.thought.stride, D_, nullptr, Then::kStore},
                panels(D_));
            const float keep = floats(layer.chat_keep)[round], add = floats(layer.chat_add)[round];
            each(n_, [&](int64_t unit) {
                const int64_t row = first + unit;
                const float* hidden = w_.hidden.values + row * w_.hidden.stride;
                float* thought = w_.thought.values + row * w_.thought.stride;
                normalise(D_, thought, e_.chat_epsilon, nullptr, thought);
                for (int64_t i = 0; i < D_; ++i) thought[i] = keep * hidden[i] + add * thought[i];
                encode(w_.thought, row);
            });
            product(
                layer.input, w_.thought, first, n_,
                {w_.parts + first * w_.part_stride, w_.part_stride, D_, nullptr, Then::kStore}, panels(D_));
            each(n_, [&](int64_t unit) {
                const int64_t row = first + unit;
                for (int64_t h = 0; h < H; ++h) make_unit(K, w_.parts + row * w_.part_stride + h * K);
            });
            ask_again(layer, step);
        }
        each(n_, [&](int64_t unit) {
            const int64_t row = first + unit;
            float* answer = w_.mixed.values + row * w_.mixed.stride;
            std::copy_n(w_.answers + row * wide_, D_, answer);
            gate_answer(layer, row, answer);
            encode(w_.mixed, row);
        });
    }

    // (R + 1) * softmax of the mix.
    float share_of_round(const float* mix, int64_t round) const {
        float most = mix[0], total = 0.0f;
        for (int64_t r = 1; r <= e_.chat_rounds; ++r) most = std::max(most, mix[r]);
        for (int64_t r = 0; r <= e_.chat_rounds; ++r) total += std::exp(mix[r] - most);
        return std::exp(mix[round] - most) / total * static_cast<float>(e_.chat_rounds + 1);
    }

    const ssmn_engine& e_;
    const ssmn_engine_call& call_;
    Progress& progress_;
    const int32_t workers_, worker_;
    uint32_t phase_ = 0;
    const Workspace w_;
    const int64_t D_, wide_, read_width_;
    int64_t* const members_;
    int64_t* const places_;
    const bool reads_plainly_;
    int64_t n_ = 0, t_ = 0, rows_ = 0;  // streams, steps and rows of the chunk
};

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
                Engine(task.engine, task.call, task.progress, gang.workers, worker).run();
            },
            &job);
    }
    __atomic_store_n(&engine->busy, 0, __ATOMIC_RELEASE);
    return status < 0 ? SSMN_OK : status;
}

}  // namespace SSMN_PATH
}  // namespace ssmn

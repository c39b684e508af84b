// Where an engine keeps what, and how its weights are packed. Nothing here depends on the path.
#include "engine_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ssmn.h"

namespace ssmn {
namespace {

class Layout {
  public:
    int64_t place(int64_t bytes) {
        const int64_t offset = used_;
        used_ += round_up(bytes, kLine);
        return offset;
    }

    int64_t floats(int64_t count) { return place(count * 4); }

    ssmn_matrix matrix(int64_t format, int64_t rows, int64_t columns) {
        return {rows, columns, format, place(ssmn_matrix_bytes(format, rows, columns))};
    }

    int64_t used() const { return used_; }

  private:
    int64_t used_ = kLine;  // offset 0 means absent
};

void place_layer(const ssmn_engine& engine, Layout& layout, ssmn_engine_layer& layer) {
    const int64_t D = engine.width, wide = padded(D), H = engine.memory_heads, format = engine.format;
    const int64_t plastic = layer.plastic;
    // What is read from a memory has to point back at what was stored: 4 bits cost most here and save least.
    const int64_t mixer_format = plastic != 0 && format == SSMN_INT4 ? static_cast<int64_t>(SSMN_INT8) : format;
    layer = {};
    layer.plastic = plastic;
    layer.mixer_norm = layout.floats(D);
    layer.ffn_norm = layout.floats(D);
    if (plastic != 0) {
        layer.input = layout.matrix(mixer_format, 3 * wide, D);
        layer.key = layout.matrix(mixer_format, wide, D);
        layer.gate = layout.matrix(SSMN_FLOAT32, gate_rows(engine), D);
        layer.key_gate = layout.matrix(SSMN_FLOAT32, engine.has_erasure ? 2 * H : H, D);
        layer.gate_bias = layout.floats(D);
        layer.importance_bias = layout.floats(H);
        layer.erasure_bias = engine.has_erasure ? layout.floats(H) : 0;
        layer.decay_rate = layout.floats(H);
        layer.read_norm = layout.floats(D / H);
        layer.chat_keep = engine.chat_rounds > 0 ? layout.floats(engine.chat_rounds) : 0;
        layer.chat_add = engine.chat_rounds > 0 ? layout.floats(engine.chat_rounds) : 0;
    } else {
        const int64_t kv = padded(D / engine.query_heads * engine.key_heads);
        layer.input = layout.matrix(format, wide + 2 * kv, D);
        layer.sinks = engine.has_sinks ? layout.floats(engine.query_heads) : 0;
    }
    layer.output = layout.matrix(mixer_format, D, D);
    layer.expand = layout.matrix(format, 2 * padded(engine.inner_width), D);
    layer.contract = layout.matrix(format, D, engine.inner_width);
}

int64_t layer_floats(const ssmn_engine& engine, bool plastic) {
    const int64_t D = engine.width;
    if (plastic) return D * padded(D / engine.memory_heads) + padded(D);
    const int64_t head = D / engine.query_heads;
    return engine.key_heads * engine.ring * (head + padded(head));
}

float bfloat16_at_least(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0xffffu) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

float nearest_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

uint16_t upper_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
}

float from_upper_half(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The nearest whole number in [low, high]; |x| is far below 2^22. Adding 1.5 * 2^23 rounds.
inline float code_of(float x, float low, float high) {
    const float rounded = (x + 12582912.0f) - 12582912.0f;
    const float bounded = rounded < low ? low : rounded;
    return bounded > high ? high : bounded;
}

// The scale that loses least of a group. For 4 bits a range of scales is tried, of either sign since -8 has no
// counterpart. The codes c that one gives have their best scale (w.c) / (c.c), which leaves the squared error
// w.w - (w.c)^2 / (c.c).
float best_scale(int64_t format, const float* group) {
    float largest = 0.0f;
    for (int64_t c = 0; c < kGroup; ++c) largest = std::max(largest, std::abs(group[c]));
    if (largest == 0.0f) return 0.0f;
    if (format == SSMN_INT8) return bfloat16_at_least(largest / 127.0f);
    float best = 0.0f, most = 0.0f;
    for (float steps = 5.5f; steps < 9.6f; steps += 0.25f)
        for (const float inverse : {steps / largest, -steps / largest}) {
            float across[4] = {}, square[4] = {};
            for (int64_t c = 0; c < kGroup; c += 4)
                for (int64_t l = 0; l < 4; ++l) {
                    const float code = code_of(group[c + l] * inverse, -8.0f, 7.0f);
                    across[l] += group[c + l] * code;
                    square[l] += code * code;
                }
            const float wc = (across[0] + across[1]) + (across[2] + across[3]);
            const float cc = (square[0] + square[1]) + (square[2] + square[3]);
            if (cc > 0.0f && wc * wc > most * cc) {
                most = wc * wc / cc;
                best = wc / cc;
            }
        }
    return nearest_bfloat16(best);
}

// Where a code lies in its group: the byte, and whether in its upper half (4 bits).
struct Place {
    int64_t byte;
    bool upper;
};

Place place_of(int64_t format, int64_t row, int64_t column) {
    const bool upper = format == SSMN_INT4 && column >= kGroup / 2;
    const int64_t at = upper ? column - kGroup / 2 : column;
    return {at / 4 * 64 + row * 4 + at % 4, upper};
}

void pack_quantised_row(int64_t format, int64_t columns, const float* weights, int64_t row, uint8_t* panel) {
    const int64_t groups = (columns + kGroup - 1) / kGroup;
    const float low = format == SSMN_INT4 ? -8.0f : -127.0f, high = format == SSMN_INT4 ? 7.0f : 127.0f;
    for (int64_t g = 0; g < groups; ++g) {
        float group[kGroup] = {};
        const int64_t count = std::min(kGroup, columns - g * kGroup);
        std::copy_n(weights + g * kGroup, count, group);
        const float scale = best_scale(format, group), inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
        uint8_t* codes = panel + scales_bytes(groups) + g * code_bytes(format);
        for (int64_t c = 0; c < kGroup; ++c) {
            const int code = static_cast<int>(code_of(group[c] * inverse, low, high));
            const Place at = place_of(format, row, c);
            if (format == SSMN_INT8) {
                codes[at.byte] = static_cast<uint8_t>(code);
            } else if (at.upper) {
                codes[at.byte] = static_cast<uint8_t>((codes[at.byte] & 0x0f) | (code + 8) << 4);
            } else {
                codes[at.byte] = static_cast<uint8_t>((codes[at.byte] & 0xf0) | (code + 8));
            }
        }
        const uint16_t half = upper_half(scale);
        std::memcpy(panel + (g * kPanelRows + row) * 2, &half, sizeof half);
    }
}

float unpacked(int64_t format, int64_t columns, const uint8_t* panel, int64_t row, int64_t column) {
    float value;
    if (format == SSMN_FLOAT32) {
        std::memcpy(&value, panel + (column * kPanelRows + row) * 4, sizeof value);
        return value;
    }
    uint16_t half;
    if (format == SSMN_BFLOAT16) {
        std::memcpy(&half, panel + ((column / 2 * kPanelRows + row) * 2 + column % 2) * 2, sizeof half);
        return from_upper_half(half);
    }
    const int64_t groups = (columns + kGroup - 1) / kGroup, g = column / kGroup;
    const Place at = place_of(format, row, column % kGroup);
    const uint8_t byte = panel[scales_bytes(groups) + g * code_bytes(format) + at.byte];
    std::memcpy(&half, panel + (g * kPanelRows + row) * 2, sizeof half);
    const int code = format == SSMN_INT8 ? static_cast<int8_t>(byte) : (at.upper ? byte >> 4 : byte & 15) - 8;
    return from_upper_half(half) * static_cast<float>(code);
}

}  // namespace
}  // namespace ssmn

using namespace ssmn;

extern "C" int64_t ssmn_matrix_bytes(int64_t format, int64_t rows, int64_t columns) {
    return panels(rows) * panel_bytes(format, columns);
}

extern "C" void ssmn_matrix_pack(
    int64_t format,
    int64_t rows,
    int64_t columns,
    const float* weights,
    int64_t first_panel,
    int64_t panel_step,
    void* packed) {
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = i % kPanelRows;
        uint8_t* panel =
            static_cast<uint8_t*>(packed) + (first_panel + i / kPanelRows * panel_step) * panel_bytes(format, columns);
        const float* line = weights + i * columns;
        if (is_quantised(format)) {
            pack_quantised_row(format, columns, line, row, panel);
        } else if (format == SSMN_FLOAT32) {
            for (int64_t j = 0; j < columns; ++j) std::memcpy(panel + (j * kPanelRows + row) * 4, line + j, 4);
        } else {
            for (int64_t j = 0; j < columns; ++j) {
                const uint16_t half = upper_half(nearest_bfloat16(line[j]));
                std::memcpy(panel + ((j / 2 * kPanelRows + row) * 2 + j % 2) * 2, &half, sizeof half);
            }
        }
    }
}

extern "C" void ssmn_matrix_unpack(int64_t format, int64_t rows, int64_t columns, const void* packed, float* weights) {
    for (int64_t i = 0; i < rows; ++i) {
        const uint8_t* panel = static_cast<const uint8_t*>(packed) + i / kPanelRows * panel_bytes(format, columns);
        for (int64_t j = 0; j < columns; ++j)
            weights[i * columns + j] = unpacked(format, columns, panel, i % kPanelRows, j);
    }
}

extern "C" void ssmn_engine_layout(ssmn_engine* engine) {
    ssmn_engine& e = *engine;
    Layout layout;
    const int64_t D = e.width;
    if (e.is_text) {
        e.input = layout.matrix(e.format, e.inputs, D);
        e.output = e.is_tied ? e.input : layout.matrix(e.format, e.outputs, D);
        e.input_bias = e.output_bias = e.columns = e.gaps = 0;
    } else {
        e.input = layout.matrix(SSMN_FLOAT32, D, read_width(e));
        e.output = layout.matrix(SSMN_FLOAT32, e.outputs, D);
        e.input_bias = layout.floats(D);
        e.output_bias = layout.floats(e.outputs);
        e.columns = e.has_columns ? layout.place(e.outputs / e.head_parts * 8) : 0;
        e.gaps = e.head_kind == SSMN_QUANTILES ? layout.floats(e.head_parts) : 0;
    }
    e.encoder_expand = e.has_encoder ? layout.matrix(e.format, 2 * padded(D), 4 * D) : ssmn_matrix{};
    e.encoder_contract = e.has_encoder ? layout.matrix(e.format, D, D) : ssmn_matrix{};
    e.norm = layout.floats(D);
    e.frequencies = layout.place((D / e.query_heads / 2 + 1) * 8);
    for (int64_t i = 0; i < e.layer_count; ++i) place_layer(e, layout, e.layers[i]);

    // A step's keys are written before the step's queries read, all steps of a chunk at once; and a query's first and
    // last block of 16 slots may not be the same.
    e.ring = round_up(e.window - 1 + e.chunk + kPanelRows, kPanelRows);
    e.front = 0;
    int64_t used = e.has_encoder ? padded(3 * D) : has_front(e) ? padded((e.is_normalised ? 4 * e.inputs : 0) + 1) : 0;
    for (int64_t i = 0; i < e.layer_count; ++i) {
        e.layers[i].state = used;
        used += layer_floats(e, e.layers[i].plastic != 0);
    }
    e.head = used;
    if (e.has_output_memory) used += (e.outputs + 1) * padded(D) + padded(2 * e.outputs + 1);
    used += readout_places(e).floats;
    e.stream_floats = padded(used);
    e.workspace = layout.place(workspace_of(e, nullptr).bytes);
    e.arena_bytes = layout.used();
}

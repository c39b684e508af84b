#include "engine_product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "engine_codes.h"
#include "engine_wide.h"
#include "path.h"
#include "pool.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// The largest tile: so many vectors times panels that the sums stay in the registers.
constexpr int64_t kTile = SSMN_LANES == 16 ? 12 : SSMN_LANES == 8 ? 4 : 2;
constexpr int64_t kFloatPanels = SSMN_LANES == 16 ? 2 : 1;
constexpr int64_t kFew = SSMN_LANES == 16 ? 4 : SSMN_LANES == 8 ? 2 : 1;  // panels times one vector
constexpr int64_t kMostPanels = 4;                                        // of a step of the outer loop

// Some way ahead in each of the panels that one pass reads: the processor's own look-ahead ends with the page.
constexpr int64_t kAhead = 1024;

SSMN_INLINE Vec both_halves(VecBits pair, bool upper) {
    return (Vec)(upper ? pair & 0xffff0000u : pair << 16);
}

struct Float32 {
    template <int64_t Rows, int64_t Count>
    static SSMN_INLINE void tile(
        const char* panel, int64_t stride, const Vectors& x, int64_t columns, int64_t row, Wide (&sum)[Rows][Count]) {
        const float* values = x.values + row * x.stride;
        for (int64_t k = 0; k < columns; ++k) {
            Wide line[Count];
            for (int64_t p = 0; p < Count; ++p) {
                const char* at = panel + p * stride + k * kWide * 4;
                if (Rows == 1) __builtin_prefetch(at + kAhead);
                line[p] = load_wide(reinterpret_cast<const float*>(at));
            }
            for (int64_t r = 0; r < Rows; ++r) {
                const Vec value = broadcast(values[r * x.stride + k]);
                for (int64_t p = 0; p < Count; ++p) add_product(sum[r][p], line[p], value);
            }
        }
    }
};

struct Bfloat16 {
    template <int64_t Rows, int64_t Count>
    static SSMN_INLINE void tile(
        const char* panel, int64_t stride, const Vectors& x, int64_t columns, int64_t row, Wide (&sum)[Rows][Count]) {
        const float* values = x.values + row * x.stride;
        for (int64_t k = 0; k < columns; k += 2) {
            VecBits pair[Count][kParts];
            for (int64_t p = 0; p < Count; ++p) {
                const char* at = panel + p * stride + k * kWide * 2;
                if (Rows == 1) __builtin_prefetch(at + kAhead);
                std::memcpy(pair[p], at, sizeof pair[p]);
            }
            for (int64_t half = 0; half < 2; ++half)
                for (int64_t r = 0; r < Rows; ++r) {
                    const Vec value = broadcast(values[r * x.stride + k + half]);
                    for (int64_t p = 0; p < Count; ++p)
                        for (int64_t part = 0; part < kParts; ++part)
                            sum[r][p].part[part] += both_halves(pair[p][part], half == 1) * value;
                }
        }
    }
};

SSMN_INLINE Wide load_scales(const uint16_t* from) {
    return each_part([&](int64_t p) { return load_bfloat16(from + p * kLanes); });
}

template <int64_t Format>
struct Quantised {
    static constexpr bool kFour = Format == SSMN_INT4;
    static constexpr int32_t kOffset = kFour ? 8 : kInt8Offset;
    static constexpr int64_t kLoads = kFour ? 4 : 8;

    template <int64_t Rows, int64_t Count>
    static SSMN_INLINE void tile(
        const char* panel, int64_t stride, const Vectors& x, int64_t columns, int64_t row, Wide (&sum)[Rows][Count]) {
        const int64_t groups = (columns + kGroup - 1) / kGroup, bytes = kLoads * 64;
        for (int64_t g = 0; g < groups; ++g) {
            Counts counts[Rows][Count];
            for (int64_t r = 0; r < Rows; ++r)
                for (int64_t p = 0; p < Count; ++p)
                    counts[r][p] = counts_from(-kOffset * x.sums[(row + r) * x.groups + g]);
            const int8_t* inputs = x.codes + row * x.stride + g * kGroup;
            for (int64_t i = 0; i < kLoads; ++i)
                for (int64_t p = 0; p < Count; ++p) {
                    const uint8_t* at = reinterpret_cast<const uint8_t*>(panel) + p * stride + scales_bytes(groups) +
                                        g * bytes + i * 64;
                    if (Rows == 1) __builtin_prefetch(at + kAhead);
                    for (int64_t part = 0; part < kCodeParts; ++part) {
                        const CodePart codes = load_codes(at + part * kCodePartBytes);
                        for (int64_t r = 0; r < Rows; ++r) {
                            CountPart& count = counts[r][p].part[part];
                            int32_t four;
                            std::memcpy(&four, inputs + r * x.stride + i * 4, sizeof four);
                            if (kFour) {
                                count = dot_unsigned(count, lower_codes(codes), four);
                                std::memcpy(&four, inputs + r * x.stride + kGroup / 2 + i * 4, sizeof four);
                                count = dot_unsigned(count, upper_codes(codes), four);
                            } else {
                                count = dot_int8(count, int8_codes(codes), four);
                            }
                        }
                    }
                }
            for (int64_t p = 0; p < Count; ++p) {
                const char* from = panel + p * stride + g * kPanelRows * 2;
                if (Rows == 1) __builtin_prefetch(from + kAhead);
                const Wide scales = load_scales(reinterpret_cast<const uint16_t*>(from));
                for (int64_t r = 0; r < Rows; ++r) {
                    const Vec scale = broadcast(x.scales[(row + r) * x.groups + g]);
                    const Wide dots = to_floats(counts[r][p]);
                    for (int64_t part = 0; part < kParts; ++part)
                        sum[r][p].part[part] += dots.part[part] * (scales.part[part] * scale);
                }
            }
        }
    }
};

// One call of the outer loop: up to kMostPanels panels times all vectors.
struct Block {
    const char* panel;
    int64_t stride;
    int64_t columns;
    int64_t first_panel;
    int64_t panels;
};

SSMN_INLINE void finish(const Target& target, int64_t row, int64_t panel, const Wide* sums, int64_t count) {
    float* line = target.y + row * target.stride;
    if (target.then == Then::kGate) {
        for (int64_t p = 0; p < count; p += 2) {
            const int64_t column = (panel + p) / 2 * kWide;
            const Wide made =
                each_part([&](int64_t i) { return sums[p].part[i] * sigmoid(sums[p].part[i]) * sums[p + 1].part[i]; });
            store_wide(line + column, made, target.width - column);
        }
        return;
    }
    for (int64_t p = 0; p < count; ++p) {
        const int64_t column = (panel + p) * kWide, left = target.width - column;
        if (left <= 0) return;
        Wide made = sums[p];
        const float* more = target.then == Then::kAdd ? line + column : target.bias ? target.bias + column : nullptr;
        if (more != nullptr) {
            const Wide other = load_wide(more, left);
            made = each_part([&](int64_t i) { return made.part[i] + other.part[i]; });
        }
        store_wide(line + column, made, left);
    }
}

template <typename Format, int64_t Rows, int64_t Count>
inline void tile_rows(const Block& block, const Vectors& x, int64_t first, int64_t row, const Target& target) {
    Wide all[Rows][kMostPanels] = {};
    for (int64_t p = 0; p < block.panels; p += Count) {
        Wide sum[Rows][Count];
        for (int64_t r = 0; r < Rows; ++r)
            for (int64_t c = 0; c < Count; ++c) sum[r][c] = zeros();
        Format::template tile<Rows, Count>(
            block.panel + p * block.stride, block.stride, x, block.columns, first + row, sum);
        for (int64_t r = 0; r < Rows; ++r)
            for (int64_t c = 0; c < Count; ++c) all[r][p + c] = sum[r][c];
    }
    for (int64_t r = 0; r < Rows; ++r) finish(target, row + r, block.first_panel, all[r], block.panels);
}

template <typename Format, int64_t Most, int64_t Few>
void multiply_format(
    const char* panel,
    int64_t stride,
    const ssmn_matrix& matrix,
    const Vectors& x,
    int64_t first,
    int64_t count,
    int64_t begin,
    int64_t end,
    const Target& target) {
    for (int64_t p = begin; p < end;) {
        const int64_t group = count <= 2 && end - p >= kMostPanels ? kMostPanels : std::min<int64_t>(2, end - p);
        const Block block{panel + p * stride, stride, matrix.columns, p, group};
        int64_t r = 0;
        if (group == kMostPanels) {
            for (; r < count; ++r) tile_rows<Format, 1, Few>(block, x, first, r, target);
        } else if (group == 2) {
            for (; r + kTile <= count; r += kTile) tile_rows<Format, kTile, Most>(block, x, first, r, target);
            if (kTile > 4)
                for (; r + 4 <= count; r += 4) tile_rows<Format, 4, 2>(block, x, first, r, target);
            for (; r < count; ++r) tile_rows < Format, 1, kFew<2 ? kFew : 2>(block, x, first, r, target);
        } else {
            for (; r < count; ++r) tile_rows<Format, 1, 1>(block, x, first, r, target);
        }
        p += group;
    }
}

}  // namespace

void encode(const Vectors& x, int64_t row) {
    if (x.codes == nullptr) return;
    const float* values = x.values + row * x.stride;
    int8_t* codes = x.codes + row * x.stride;
    for (int64_t g = 0; g < x.groups; ++g, values += kGroup, codes += kGroup) {
        float largest = 0.0f;
        for (int64_t i = 0; i < kGroup; ++i) {
            const float size = values[i] < 0.0f ? -values[i] : values[i];
            largest = size > largest ? size : largest;
        }
        const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int64_t i = 0; i < kGroup; ++i) {
            // Adding 1.5 * 2^23 rounds to an integer, kept in the low bits.
            const float shifted = values[i] * inverse + 12582912.0f;
            int32_t bits;
            std::memcpy(&bits, &shifted, sizeof bits);
            const int8_t code = static_cast<int8_t>(bits - 0x4b400000);
            codes[i] = code;
            sum += code;
        }
        x.scales[row * x.groups + g] = largest / 127.0f;
        x.sums[row * x.groups + g] = sum;
    }
}

void multiply(
    const ssmn_matrix& matrix,
    const void* panels,
    const Vectors& x,
    int64_t first,
    int64_t count,
    int64_t begin,
    int64_t end,
    const Target& target) {
    const int64_t stride = panel_bytes(matrix.format, matrix.columns);
    const char* from = static_cast<const char*>(panels);
    if (matrix.format == SSMN_FLOAT32)
        multiply_format<Float32, kFloatPanels, kFew>(from, stride, matrix, x, first, count, begin, end, target);
    else if (matrix.format == SSMN_BFLOAT16)
        multiply_format<Bfloat16, kFloatPanels, kFew>(from, stride, matrix, x, first, count, begin, end, target);
    else if (matrix.format == SSMN_INT8)
        multiply_format<Quantised<SSMN_INT8>, 1, 1>(from, stride, matrix, x, first, count, begin, end, target);
    else
        multiply_format<Quantised<SSMN_INT4>, 1, 1>(from, stride, matrix, x, first, count, begin, end, target);
}

int32_t matrix_product(
    int64_t format,
    int64_t rows,
    int64_t columns,
    const void* packed,
    int64_t count,
    const float* x,
    float* y,
    int32_t threads) {
    Carver measure(nullptr);
    measure.vectors(count, columns, is_quantised(format));
    void* memory = ::operator new(static_cast<size_t>(measure.used()) + 1, std::align_val_t{kLine}, std::nothrow);
    if (memory == nullptr) return SSMN_OUT_OF_MEMORY;
    Carver carver(memory);
    const Vectors inputs = carver.vectors(count, columns, is_quantised(format));
    for (int64_t i = 0; i < count; ++i) {
        float* line = inputs.values + i * inputs.stride;
        std::copy_n(x + i * columns, columns, line);
        std::fill(line + columns, line + inputs.stride, 0.0f);
        encode(inputs, i);
    }
    const ssmn_matrix matrix{rows, columns, format, 0};
    const Target target{y, rows, rows, nullptr, Then::kStore};
    struct Work {
        const ssmn_matrix& matrix;
        const void* packed;
        const Vectors& inputs;
        int64_t count;
        const Target& target;
    } work{matrix, packed, inputs, count, target};
    run_gang(
        threads,
        [](const void* body, const Gang& gang, int32_t worker) {
            const Work& job = *static_cast<const Work*>(body);
            const int64_t pairs = (panels(job.matrix.rows) + 1) / 2;
            const int64_t begin = pairs * worker / gang.workers * 2, end = pairs * (worker + 1) / gang.workers * 2;
            multiply(
                job.matrix, job.packed, job.inputs, 0, job.count, begin, std::min(end, panels(job.matrix.rows)),
                job.target);
        },
        &work);
    ::operator delete(memory, std::align_val_t{kLine});
    return SSMN_OK;
}

}  // namespace SSMN_PATH
}  // namespace ssmn

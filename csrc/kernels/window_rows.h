// The rows of the window attention's arrays, in and out: either type, rotary positions, packing for the products.
#ifndef SSMN_WINDOW_ROWS_H
#define SSMN_WINDOW_ROWS_H

#include <cstdint>
#include <cstring>

#include "window.h"
#include "window_tile.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// An array [B, T, heads, D] of either type.
template <typename Data>  // void or const void
struct Steps {
    Data* data;
    bool bfloat16;
    int64_t heads, width;

    int64_t at(int64_t row, int64_t head) const { return (row * heads + head) * width; }
};

inline void read_row(const Steps<const void>& from, int64_t row, int64_t head, float* to) {
    const int64_t at = from.at(row, head), width = from.width;
    if (!from.bfloat16) {
        std::memcpy(to, static_cast<const float*>(from.data) + at, sizeof(float) * width);
        return;
    }
    const uint16_t* half = static_cast<const uint16_t*>(from.data) + at;
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) store(to + d, load_bfloat16(half + d));
    for (; d < width; ++d) to[d] = widen(half[d]);
}

// Rows of one head lie far apart, too far for the processor to guess the next: it is told some rows before.
constexpr int64_t kAhead = 16;

SSMN_INLINE void fetch_row(const Steps<const void>& from, int64_t row, int64_t head) {
    const int64_t size = from.bfloat16 ? 2 : 4;
    const char* at = static_cast<const char*>(from.data) + from.at(row, head) * size;
    for (int64_t byte = 0; byte < size * from.width; byte += 64) __builtin_prefetch(at + byte);
}

inline void write_row(const Steps<void>& to, int64_t row, int64_t head, const float* from) {
    const int64_t at = to.at(row, head), width = to.width;
    if (!to.bfloat16) {
        std::memcpy(static_cast<float*>(to.data) + at, from, sizeof(float) * width);
        return;
    }
    uint16_t* half = static_cast<uint16_t*>(to.data) + at;
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) store_bfloat16(half + d, load(from + d));
    for (; d < width; ++d) half[d] = narrow(from[d]);
}

inline void clear_row(const Steps<void>& to, int64_t row, int64_t head) {
    const int64_t size = to.bfloat16 ? 2 : 4;
    std::memset(static_cast<char*>(to.data) + to.at(row, head) * size, 0, size * to.width);
}

// x [D] of query or key i of a run, turned by its position's angles, or back. `turn` is scratch [D].
inline void rotate_row(const WindowPlan& plan, const WindowRun& run, int64_t i, bool back, float* x, float* turn) {
    if (plan.coarse == nullptr) return;
    const int64_t half = plan.sizes.width / 2;
    const double* a = plan.coarse + (run.first_turn + i / plan.turn) * 2 * half;
    const double* b = plan.fine + i % plan.turn * 2 * half;
    float* cosine = turn;
    float* sine = turn + half;
    for (int64_t d = 0; d < half; ++d) {
        cosine[d] = static_cast<float>(a[d] * b[d] - a[half + d] * b[half + d]);
        sine[d] = static_cast<float>(a[half + d] * b[d] + a[d] * b[half + d]);
    }
    const float sign = back ? -1.0f : 1.0f;
    for (int64_t d = 0; d < half; ++d) {
        const float first = x[d], second = x[half + d];
        x[d] = first * cosine[d] - sign * (second * sine[d]);
        x[half + d] = second * cosine[d] + sign * (first * sine[d]);
    }
}

// The slot of the ring that holds the step at a position, as a row of [N, W - 1, Hkv].
inline int64_t slot_row(const WindowPlan& plan, const WindowRun& run, int64_t position) {
    const int64_t slots = plan.sizes.window - 1;
    return run.stream * slots + position % slots;
}

// How the operands of the products are laid out for one head width.
template <typename Unit>
struct Packing {
    int64_t width;   // D
    int64_t padded;  // D rounded up to whole vectors: the row of an operand whose columns are d
    int64_t units;   // D in units: the row, or the depth, of an operand that is summed over d

    explicit Packing(int64_t width)
        : width(width), padded(round_up(width, kLanes)), units(round_up(width, Unit::kNumbers) / Unit::kNumbers) {}

    // Floats of scratch to pack kBlock rows.
    int64_t scratch() const { return kBlock * padded + padded; }
    // [kBlock, units], the numbers of a row together.
    int64_t along() const { return kBlock * padded; }
    // [kBlock / kNumbers, padded], the numbers of a column together.
    int64_t across() const { return kBlock * padded; }
};

// rows [count, padded] floats to [count, units]: where the sum is over d.
inline void pack_along(const Packing<Floats>& packing, int64_t count, const float* rows, float* to) {
    for (int64_t i = 0; i < count; ++i)
        std::memcpy(to + i * packing.units, rows + i * packing.padded, sizeof(float) * packing.units);
}

// rows [count, padded] floats to [count / kNumbers, padded] units: where the sum is over the rows.
inline void pack_across(const Packing<Floats>& packing, int64_t count, const float* rows, float* to) {
    std::memcpy(to, rows, sizeof(float) * count * packing.padded);
}

#if defined(SSMN_BF16_DOT)
inline void pack_along(const Packing<Pairs>& packing, int64_t count, const float* rows, float* to) {
    for (int64_t i = 0; i < count; ++i) {
        uint16_t half[2 * kLanes];
        const float* row = rows + i * packing.padded;
        for (int64_t d = 0; d < packing.padded; d += kLanes) {
            store_bfloat16(half, load(row + d));
            const int64_t bytes = smaller(2 * kLanes, 4 * packing.units - 2 * d);
            std::memcpy(reinterpret_cast<char*>(to + i * packing.units) + 2 * d, half, bytes);
        }
    }
}

inline void pack_across(const Packing<Pairs>& packing, int64_t count, const float* rows, float* to) {
    for (int64_t i = 0; i < count; i += 2)
        for (int64_t d = 0; d < packing.padded; d += kLanes) {
            const float* at = rows + i * packing.padded + d;
            store(to + i / 2 * packing.padded + d, pair(load(at), load(at + packing.padded)));
        }
}
#endif

// to [columns, kBlock] = the transpose of from [kBlock, columns].
inline void transpose_block(int64_t columns, const float* from, float* to) {
    for (int64_t i0 = 0; i0 < kBlock; i0 += kLanes)
        for (int64_t j = 0; j < columns; ++j) {
            float lane[kLanes];
            for (int64_t l = 0; l < kLanes; ++l) lane[l] = from[(i0 + l) * columns + j];
            std::memcpy(to + j * kBlock + i0, lane, sizeof lane);
        }
}

// One of the four arrays of a run's keys: those of the ring first, then its own.
struct Keys {
    Steps<const void> steps;
    const float* ring;  // [N, W - 1, Hkv, D]
    bool rotates;       // the ring's are rotated already
};

// rows [count rounded up to whole tiles, padded]: keys [first, first + count) of a run, zeros beyond.
template <typename Unit>
void read_keys(
    const WindowPlan& plan,
    const WindowRun& run,
    const Keys& keys,
    const Packing<Unit>& packing,
    int64_t head,
    int64_t first,
    int64_t count,
    float* rows,
    float* turn) {
    const int64_t width = packing.width, padded = packing.padded;
    for (int64_t s = 0; s < round_up(count, kTileRows); ++s) {
        float* row = rows + s * padded;
        const int64_t key = first + s;
        int64_t filled = width;
        if (s >= count) {
            filled = 0;
        } else if (key < run.carried) {
            const int64_t slot = slot_row(plan, run, run.start - run.carried + key);
            std::memcpy(row, keys.ring + (slot * keys.steps.heads + head) * width, sizeof(float) * width);
        } else {
            if (s + kAhead < count) fetch_row(keys.steps, plan.row(run, key - run.carried + kAhead), head);
            read_row(keys.steps, plan.row(run, key - run.carried), head, row);
            if (keys.rotates) rotate_row(plan, run, key - run.carried, false, row, turn);
        }
        for (int64_t d = filled; d < padded; ++d) row[d] = 0.0f;
    }
}

// rows [kBlock, padded]: queries [first, first + count) of a run, zeros beyond.
template <typename Unit>
void read_queries(
    const WindowPlan& plan,
    const WindowRun& run,
    const Steps<const void>& queries,
    bool rotates,
    const Packing<Unit>& packing,
    int64_t head,
    int64_t first,
    int64_t count,
    float* rows,
    float* turn) {
    for (int64_t i = 0; i < kBlock; ++i) {
        float* row = rows + i * packing.padded;
        if (i < count) {
            if (i + kAhead < count) fetch_row(queries, plan.row(run, first + i + kAhead), head);
            read_row(queries, plan.row(run, first + i), head, row);
            if (rotates) rotate_row(plan, run, first + i, false, row, turn);
        }
        for (int64_t d = i < count ? packing.width : 0; d < packing.padded; ++d) row[d] = 0.0f;
    }
}

// columns [units, kBlock]: the packed transpose of `rows`, and `along` [kBlock, units] is scratch.
template <typename Unit>
void pack_columns(const Packing<Unit>& packing, const float* rows, float* along, float* columns) {
    pack_along(packing, kBlock, rows, along);
    transpose_block(packing.units, along, columns);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

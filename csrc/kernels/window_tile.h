// The arithmetic of the window attention: register tiles, the exponential, and which queries see which keys.
#ifndef SSMN_WINDOW_TILE_H
#define SSMN_WINDOW_TILE_H

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Queries, and keys, that meet at a time: the scores of a block stay in the first-level cache.
constexpr int64_t kBlock = 64;
// Rows and columns of a tile of sums: enough independent sums to hide the latency of a multiply-add.
constexpr int64_t kTileRows = SSMN_LANES == 16 ? 8 : 4;
constexpr int64_t kTileColumns = 2 * kLanes;

SSMN_INLINE int64_t smaller(int64_t x, int64_t y) {
    return x < y ? x : y;
}

SSMN_INLINE int64_t larger(int64_t x, int64_t y) {
    return x > y ? x : y;
}

SSMN_INLINE int64_t round_up(int64_t x, int64_t unit) {
    return (x + unit - 1) / unit * unit;
}

SSMN_INLINE int64_t round_down(int64_t x, int64_t unit) {
    return x / unit * unit;
}

// What the packed operands of the products consist of. They are arrays of 32-bit *units*, typed float: one number each,
// or a pair of bfloat16 that are neighbours along the sum.
struct Floats {
    static constexpr int64_t kNumbers = 1;
    static SSMN_INLINE Vec spread(float a) { return broadcast(a); }
    static SSMN_INLINE Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

#if defined(SSMN_BF16_DOT)
struct Pairs {
    static constexpr int64_t kNumbers = 2;
    static SSMN_INLINE Vec spread(float a) { return (Vec)_mm512_set1_ps(a); }
    static SSMN_INLINE Vec multiply_add(Vec sum, Vec a, Vec b) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};

// Units of (low[i], high[i]).
SSMN_INLINE Vec pair(Vec low, Vec high) {
    // Halves of the result take turns: low[0], high[0], low[1], ...
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0);
    return (Vec)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
#endif

// c [kTileRows, Vectors * kLanes] = or += a b, a sum over `depth` units; element (r, s) of a is a[r * a_row + s *
// a_step].
template <typename Unit, bool Add, int64_t Vectors>
SSMN_INLINE void multiply_tile(
    int64_t depth,
    const float* a,
    int64_t a_row,
    int64_t a_step,
    const float* b,
    int64_t b_row,
    float* c,
    int64_t c_row) {
    Vec sum[kTileRows][Vectors];
    for (int64_t r = 0; r < kTileRows; ++r)
        for (int64_t l = 0; l < Vectors; ++l) sum[r][l] = Add ? load(c + r * c_row + l * kLanes) : Vec{};
    for (int64_t s = 0; s < depth; ++s) {
        Vec line[Vectors];
        for (int64_t l = 0; l < Vectors; ++l) line[l] = load(b + s * b_row + l * kLanes);
        for (int64_t r = 0; r < kTileRows; ++r) {
            const Vec x = Unit::spread(a[r * a_row + s * a_step]);
            for (int64_t l = 0; l < Vectors; ++l) sum[r][l] = Unit::multiply_add(sum[r][l], x, line[l]);
        }
    }
    for (int64_t r = 0; r < kTileRows; ++r)
        for (int64_t l = 0; l < Vectors; ++l) store(c + r * c_row + l * kLanes, sum[r][l]);
}

// c [kTileRows, columns] += a b; `columns` is a multiple of kLanes. Elements of a that follow each other along the sum
// are a_step apart.
template <typename Unit>
void add_rows(
    int64_t columns,
    int64_t depth,
    const float* a,
    int64_t a_row,
    int64_t a_step,
    const float* b,
    int64_t b_row,
    float* c,
    int64_t c_row) {
    int64_t j = 0;
    for (; j + kTileColumns <= columns; j += kTileColumns)
        multiply_tile<Unit, true, 2>(depth, a, a_row, a_step, b + j, b_row, c + j, c_row);
    if (j < columns) multiply_tile<Unit, true, 1>(depth, a, a_row, a_step, b + j, b_row, c + j, c_row);
}

struct Range {
    int64_t from, to;
    bool empty() const { return from >= to; }
};

// Which of `queries` and `keys` that follow each other in a run see each other: query l sees key s if and only if
// s + shift <= l < s + shift + window.
struct Band {
    int64_t shift, window, queries, keys;

    // The keys that any of the queries [from, to) sees.
    Range keys_of(int64_t from, int64_t to) const {
        return {larger(0, from - shift - window + 1), smaller(keys, smaller(to, queries) - shift)};
    }
    // The queries that see any of the keys [from, to).
    Range queries_of(int64_t from, int64_t to) const {
        return {larger(0, from + shift), smaller(queries, smaller(to, keys) - 1 + shift + window)};
    }
    // Whether all queries of a tile see all its keys.
    bool full(int64_t key, int64_t query) const {
        return key + kTileRows - 1 + shift <= query && query + kTileColumns <= key + shift + window;
    }
};

constexpr float kUnseen = -__builtin_inff();

// The scores in a tile of those who do not see each other become kUnseen.
inline void hide(const Band& band, int64_t key, int64_t query, float* scores) {
    const VecInt lanes = lane_numbers();
    for (int64_t r = 0; r < kTileRows; ++r)
        for (int64_t l = 0; l < kTileColumns; l += kLanes) {
            float* at = scores + (key + r) * kBlock + query + l;
            const int64_t first = key + r + band.shift - query - l;
            const int32_t from = static_cast<int32_t>(larger(-1, smaller(first, kLanes)));
            const int32_t to = static_cast<int32_t>(larger(-1, smaller(first + band.window, kLanes)));
            store(at, select((lanes >= from) & (lanes < to), load(at), broadcast(kUnseen)));
        }
}

// products [keys, kBlock] = rows columns, in the tiles where anybody sees anything. rows [keys, depth]: rounded up to
// whole tiles; columns [depth, kBlock].
template <typename Unit, bool Hide>
void multiply_seen(
    const Band& band, int64_t depth, const float* rows, int64_t row, const float* columns, float* products) {
    for (int64_t s = 0; s < band.keys; s += kTileRows) {
        const Range seen = band.queries_of(s, s + kTileRows);
        for (int64_t l = round_down(seen.from, kTileColumns); l < seen.to; l += kTileColumns) {
            multiply_tile<Unit, false, 2>(
                depth, rows + s * row, row, 1, columns + l, kBlock, products + s * kBlock + l, kBlock);
            if (Hide && !band.full(s, l)) hide(band, s, l, products);
        }
    }
}

// 2^x within 2 units in the last place for -126 <= x < 127, 0 for x < -127.
SSMN_INLINE Vec power_of_two(Vec x) {
    const Vec lowest = broadcast(-127.0f);
    const Vec round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const Vec bounded = x < lowest ? lowest : x;
    const Vec shifted = bounded + round;
    const Vec r = bounded - (shifted - round);
    Vec poly = r * 1.3276472027e-03f + 9.6755414802e-03f;  // least relative error in [-1/2, 1/2]
    poly = poly * r + 5.5507132747e-02f;
    poly = poly * r + 2.4022119721e-01f;
    poly = poly * r + 6.9314696706e-01f;
    poly = poly * r + 1.0f;
    const VecBits power = ((VecBits)shifted + 127u) << 23;  // the magic number's own low bits are zero
    return poly * (Vec)power;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

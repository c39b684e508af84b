// Products of row-major blocks of floats whose widths are whole numbers of vectors, with the sums in registers, and the
// transpose of such a block.
#ifndef SSMN_TILE_H
#define SSMN_TILE_H

#include <utility>

#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

#define SSMN_APART inline __attribute__((noinline))

// A view of a matrix: element (i, j) is data[i * row + j * column].
struct Matrix {
    const float* data;
    int64_t row;
    int64_t column = 1;

    Matrix transposed() const { return {data, column, row}; }
};

// The rows of a tile of sums. With 32 registers 8 rows of two vectors leave room, and 8 divides a chunk.
constexpr int64_t kRows = SSMN_LANES == 16 ? 8 : 6;

// From the first to before the last of the terms of a sum.
struct Range {
    int64_t first;
    int64_t last;
};

// Rows of memory that will soon be wanted, fetched in small helpings while there is something else to do: rows that lie
// far apart are beyond what the processor guesses by itself.
struct Ahead {
    static constexpr int64_t kLine = 64;
    static constexpr int64_t kHelping = 24;  // about as many misses as can be under way at a time

    const char* next = nullptr;
    int64_t row = 0;    // bytes between rows
    int64_t lines = 0;  // cache lines of a row
    int64_t rows = 0;   // left to be fetched
    Ahead* then = nullptr;

    Ahead(
        const void* array,
        int64_t element_bytes,
        int64_t offset,
        int64_t width,
        int64_t stride,
        int64_t n,
        Ahead* after)
        : next(static_cast<const char*>(array) + offset * element_bytes),
          row(stride * element_bytes),
          lines((width * element_bytes + kLine - 1) / kLine),
          rows(n),
          then(after) {}

    void help() {
        int64_t left = kHelping;
        for (; rows > 0 && left > 0; --rows, left -= lines, next += row)
            for (int64_t l = 0; l < lines; ++l) __builtin_prefetch(next + l * kLine);
        if (left > 0 && then != nullptr) then->help();
    }
};

// What becomes of the sums: c = keep c + scale a b, row by row; c = scale a b when keep is 0 (c is then not read).
struct Into {
    float* data;
    int64_t row;
    float keep = 0.0f;
    const float* scale = nullptr;  // per row of c; null means ones
    Ahead* ahead = nullptr;        // what to fetch meanwhile
};

// Numbers are multiplied as floats, or as pairs of bfloat16 that look like one float: then a term is the sum of two
// products, and the pairs of a lie along its rows, those of b along its columns.
#if defined(SSMN_BF16_DOT)
constexpr bool kHasPairs = true;

template <bool Pairs>
SSMN_INLINE Vec add_term(Vec sum, Vec x, Vec y) {
    return Pairs ? (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y) : sum + x * y;
}
#else
constexpr bool kHasPairs = false;

template <bool Pairs>
SSMN_INLINE Vec add_term(Vec sum, Vec x, Vec y) {
    static_assert(!Pairs, "no dot products of bfloat16");
    return sum + x * y;
}
#endif

// c [Rows, Vectors * kLanes] from a [Rows, terms] and b [terms, Vectors * kLanes].
template <bool Pairs, int64_t Rows, int64_t Vectors>
SSMN_INLINE void multiply_tile(Range terms, Matrix a, const float* b, int64_t b_row, const Into& c, int64_t i) {
    if (c.ahead != nullptr) c.ahead->help();
    Vec sum[Rows][Vectors] = {};
    const float* left = a.data + i * a.row + terms.first * a.column;
    const float* right = b + terms.first * b_row;
    for (int64_t s = terms.first; s < terms.last; ++s) {
        Vec line[Vectors];
        for (int64_t l = 0; l < Vectors; ++l) line[l] = load(right + l * kLanes);
        for (int64_t r = 0; r < Rows; ++r) {
            const Vec x = broadcast(left[r * a.row]);
            for (int64_t l = 0; l < Vectors; ++l) sum[r][l] = add_term<Pairs>(sum[r][l], x, line[l]);
        }
        left += a.column;
        right += b_row;
    }
    for (int64_t r = 0; r < Rows; ++r) {
        float* at = c.data + (i + r) * c.row;
        const float factor = c.scale == nullptr ? 1.0f : c.scale[i + r];
        for (int64_t l = 0; l < Vectors; ++l) {
            Vec x = sum[r][l] * factor;
            if (c.keep != 0.0f) x += load(at + l * kLanes) * c.keep;
            store(at + l * kLanes, x);
        }
    }
}

// Calls tile(i, Rows) for tiles of rows that cover [0, m).
template <typename Tile>
SSMN_INLINE void for_tiles(int64_t m, const Tile& tile) {
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) tile(i, std::integral_constant<int64_t, kRows>());
    for (; i + kRows / 2 <= m; i += kRows / 2) tile(i, std::integral_constant<int64_t, kRows / 2>());
    for (; i < m; ++i) tile(i, std::integral_constant<int64_t, 1>());
}

// c [m, n] from a [m, terms] b [terms, n]; n is a multiple of kLanes. terms(i, rows) are those of the rows
// [i, i + rows): a triangular a has few.
template <bool Pairs = false, typename Terms>
inline void multiply(int64_t m, int64_t n, const Terms& terms, Matrix a, const float* b, int64_t b_row, Into c) {
    int64_t j = 0;
    for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
        for_tiles(
            m, [&](int64_t i, auto rows) { multiply_tile<Pairs, rows(), 2>(terms(i, rows()), a, b + j, b_row, c, i); });
        c.data += 2 * kLanes;
    }
    if (j < n)
        for_tiles(
            m, [&](int64_t i, auto rows) { multiply_tile<Pairs, rows(), 1>(terms(i, rows()), a, b + j, b_row, c, i); });
}

// The same with all p terms.
template <bool Pairs = false>
inline void multiply_all(int64_t m, int64_t n, int64_t p, Matrix a, const float* b, int64_t b_row, Into c) {
    multiply<Pairs>(m, n, [p](int64_t, int64_t) { return Range{0, p}; }, a, b, b_row, c);
}

// The first width(i, rows) columns of the rows [i, i + rows) of a [m, p] b, rounded up to whole vectors.
template <bool Pairs = false, typename Width>
SSMN_APART void multiply_part(
    int64_t m, const Width& width, int64_t p, Matrix a, const float* b, int64_t b_row, Into c) {
    for_tiles(m, [&](int64_t i, auto rows) {
        const int64_t n = width(i, rows());
        Into to = c;
        int64_t j = 0;
        for (; j + kLanes < n; j += 2 * kLanes) {
            multiply_tile<Pairs, rows(), 2>({0, p}, a, b + j, b_row, to, i);
            to.data += 2 * kLanes;
        }
        if (j < n) multiply_tile<Pairs, rows(), 1>({0, p}, a, b + j, b_row, to, i);
    });
}

// One stage of a transpose: exchanges the blocks of `Distance` lanes beside the diagonal of two rows.
template <size_t Distance, size_t... Lane>
SSMN_INLINE void exchange(Vec& x, Vec& y, std::index_sequence<Lane...>) {
    constexpr size_t lanes = kLanes;
    const Vec upper = __builtin_shufflevector(x, y, (Lane & Distance ? lanes + Lane - Distance : Lane)...);
    const Vec lower = __builtin_shufflevector(x, y, (Lane & Distance ? lanes + Lane : Lane + Distance)...);
    x = upper;
    y = lower;
}

template <size_t Distance>
SSMN_INLINE void exchange_all(Vec* rows) {
    for (size_t i = 0; i < static_cast<size_t>(kLanes); ++i)
        if ((i & Distance) == 0) exchange<Distance>(rows[i], rows[i + Distance], std::make_index_sequence<kLanes>());
}

SSMN_INLINE void transpose_square(const float* from, int64_t from_row, float* to, int64_t to_row) {
    Vec rows[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = load(from + i * from_row);
    exchange_all<1>(rows);
    exchange_all<2>(rows);
    if constexpr (kLanes >= 8) exchange_all<4>(rows);
    if constexpr (kLanes >= 16) exchange_all<8>(rows);
    for (int64_t i = 0; i < kLanes; ++i) store(to + i * to_row, rows[i]);
}

SSMN_INLINE int64_t whole_vectors(int64_t width) {
    return (width + kLanes - 1) / kLanes * kLanes;
}

// to [n, m rounded up] = the transpose of from [m, n], with zeros where there is no row; n is a multiple of kLanes.
SSMN_APART void transpose_block(int64_t m, int64_t n, const float* from, int64_t from_row, float* to, int64_t to_row) {
    int64_t i = 0;
    for (; i + kLanes <= m; i += kLanes)
        for (int64_t j = 0; j < n; j += kLanes)
            transpose_square(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    if (i == m) return;
    for (int64_t j = 0; j < n; j += kLanes) {
        float square[kLanes * kLanes] = {};
        for (int64_t r = 0; r < m - i; ++r) store(square + r * kLanes, load(from + (i + r) * from_row + j));
        transpose_square(square, kLanes, to + j * to_row + i, to_row);
    }
}

// Rows of floats to rows of bfloat16, in whole vectors and zeros after them; `whole` is a multiple of kLanes.
SSMN_APART void narrow_rows(int64_t n, int64_t whole, const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int64_t i = 0; i < n; ++i) {
        uint16_t* line = reinterpret_cast<uint16_t*>(to + i * to_row);
        int64_t j = 0;
        for (; j < whole; j += kLanes) store_bfloat16(line + j, load(from + i * from_row + j));
        for (; j % (2 * kLanes) != 0; j += kLanes) store_bfloat16(line + j, Vec{});
    }
}

SSMN_INLINE Vec pair_up(Vec first, Vec second) {
#if defined(SSMN_BF16_DOT)
    typedef uint16_t Halves __attribute__((vector_size(4 * SSMN_LANES)));
    constexpr Halves order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (Vec)_mm512_permutexvar_epi16((__m512i)order, both);
#else
    const VecBits low = __builtin_convertvector(to_bfloat16(first), VecBits);
    return (Vec)(low | __builtin_convertvector(to_bfloat16(second), VecBits) << 16);
#endif
}

// Rows of floats to half as many rows of pairs: the first numbers of the pairs are those of an even row, the second
// ones those of the odd row after it (zeros after the last one). Each row is multiplied by its factor, if there are
// any.
SSMN_APART void pair_rows(
    int64_t n, int64_t whole, const float* factors, const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int64_t i = 0; i < n; i += 2) {
        const float* even = from + i * from_row;
        float* line = to + i / 2 * to_row;
        const float x = factors == nullptr ? 1.0f : factors[i];
        if (i + 1 == n) {
            for (int64_t j = 0; j < whole; j += kLanes) store(line + j, pair_up(load(even + j) * x, Vec{}));
            return;
        }
        const float y = factors == nullptr ? 1.0f : factors[i + 1];
        for (int64_t j = 0; j < whole; j += kLanes)
            store(line + j, pair_up(load(even + j) * x, load(even + from_row + j) * y));
    }
}

// The lanes x[Lane + Distance], for the upper ones any.
template <size_t Distance, size_t... Lane>
SSMN_INLINE Vec moved_down(Vec x, std::index_sequence<Lane...>) {
    return __builtin_shufflevector(x, x, ((Lane + Distance) % kLanes)...);
}

// reduce_add of simd.h, without going through memory.
SSMN_INLINE float sum_of_lanes(Vec x) {
    constexpr auto lanes = std::make_index_sequence<kLanes>();
    if constexpr (kLanes >= 16) x += moved_down<8>(x, lanes);
    if constexpr (kLanes >= 8) x += moved_down<4>(x, lanes);
    x += moved_down<2>(x, lanes);
    x += moved_down<1>(x, lanes);
    return x[0];
}

// The sum of x y over n numbers; n is a multiple of kLanes.
SSMN_INLINE float dot_vectors(int64_t n, const float* x, const float* y) {
    Vec even = {}, odd = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even += load(x + i) * load(y + i);
        odd += load(x + i + kLanes) * load(y + i + kLanes);
    }
    if (i < n) even += load(x + i) * load(y + i);
    return sum_of_lanes(even + odd);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

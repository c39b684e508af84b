// Small dense products over row-major blocks of floats, with the sums in registers.
#ifndef SSMN_MATRIX_H
#define SSMN_MATRIX_H

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

SSMN_INLINE int64_t smaller(int64_t x, int64_t y) {
    return x < y ? x : y;
}

SSMN_INLINE int64_t larger(int64_t x, int64_t y) {
    return x > y ? x : y;
}

// A view of a matrix: element (i, j) is data[i * row + j * column].
struct Matrix {
    const float* data;
    int64_t row;
    int64_t column = 1;

    Matrix transposed() const { return {data, column, row}; }
    Matrix from_row(int64_t i) const { return {data + i * row, row, column}; }
};

// The first `count` < kLanes floats; the other lanes are 0.
SSMN_INLINE Vec load_part(const float* from, int64_t count) {
    float lane[kLanes] = {};
    for (int64_t l = 0; l < count; ++l) lane[l] = from[l];
    return load(lane);
}

SSMN_INLINE void store_part(float* to, Vec x, int64_t count) {
    float lane[kLanes];
    store(lane, x);
    for (int64_t l = 0; l < count; ++l) to[l] = lane[l];
}

// A tile of sums: as many as leave room in the registers for a row of b and an element of a.
constexpr int64_t kTileVectors = 2;
constexpr int64_t kTileRows = SSMN_LANES == 16 ? 12 : 6;

// c [Rows, Vectors * kLanes] += a [Rows, p] b [p, Vectors * kLanes]
template <int64_t Rows, int64_t Vectors>
SSMN_INLINE void add_tile(int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    Vec sum[Rows][Vectors] = {};
    for (int64_t s = 0; s < p; ++s) {
        Vec line[Vectors];
        for (int64_t l = 0; l < Vectors; ++l) line[l] = load(b + s * b_row + l * kLanes);
        for (int64_t r = 0; r < Rows; ++r) {
            const Vec x = broadcast(a.data[r * a.row + s * a.column]);
            for (int64_t l = 0; l < Vectors; ++l) sum[r][l] += x * line[l];
        }
    }
    for (int64_t r = 0; r < Rows; ++r)
        for (int64_t l = 0; l < Vectors; ++l) {
            float* at = c + r * c_row + l * kLanes;
            store(at, load(at) + sum[r][l]);
        }
}

// The same for `count` < kLanes columns.
template <int64_t Rows>
SSMN_INLINE void add_tail(int64_t count, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    Vec sum[Rows] = {};
    for (int64_t s = 0; s < p; ++s) {
        const Vec line = load_part(b + s * b_row, count);
        for (int64_t r = 0; r < Rows; ++r) sum[r] += broadcast(a.data[r * a.row + s * a.column]) * line;
    }
    for (int64_t r = 0; r < Rows; ++r) store_part(c + r * c_row, load_part(c + r * c_row, count) + sum[r], count);
}

// c [Rows, n] += a [Rows, p] b [p, n]
template <int64_t Rows>
inline void add_rows(int64_t n, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    int64_t j = 0;
    for (; j + kTileVectors * kLanes <= n; j += kTileVectors * kLanes)
        add_tile<Rows, kTileVectors>(p, a, b + j, b_row, c + j, c_row);
    for (; j + kLanes <= n; j += kLanes) add_tile<Rows, 1>(p, a, b + j, b_row, c + j, c_row);
    if (j < n) add_tail<Rows>(n - j, p, a, b + j, b_row, c + j, c_row);
}

// c [m, n] += a [m, p] b [p, n]; the rows of b and c are contiguous.
inline void add_product(
    int64_t m, int64_t n, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    int64_t i = 0;
    for (; i + kTileRows <= m; i += kTileRows) add_rows<kTileRows>(n, p, a.from_row(i), b, b_row, c + i * c_row, c_row);
    for (; i + 4 <= m; i += 4) add_rows<4>(n, p, a.from_row(i), b, b_row, c + i * c_row, c_row);
    for (; i < m; ++i) add_rows<1>(n, p, a.from_row(i), b, b_row, c + i * c_row, c_row);
}

// c [m, n] = a [m, p] b [p, n].
inline void product(int64_t m, int64_t n, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) c[i * c_row + j] = 0.0f;
    add_product(m, n, p, a, b, b_row, c, c_row);
}

// to [n, m] = the transpose of from [m, n].
inline void transpose(int64_t m, int64_t n, const float* from, int64_t from_row, float* to, int64_t to_row) {
    constexpr int64_t block = 16;
    for (int64_t i0 = 0; i0 < m; i0 += block)
        for (int64_t j0 = 0; j0 < n; j0 += block)
            for (int64_t j = j0; j < smaller(n, j0 + block); ++j)
                for (int64_t i = i0; i < smaller(m, i0 + block); ++i) to[j * to_row + i] = from[i * from_row + j];
}

// Rows of `width` floats, `from_row` apart, to dense rows.
inline void gather(int64_t rows, int64_t width, const float* from, int64_t from_row, float* to) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * width, from + i * from_row, sizeof(float) * width);
}

// Dense rows to rows `to_row` apart.
inline void scatter(int64_t rows, int64_t width, const float* from, float* to, int64_t to_row) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * to_row, from + i * width, sizeof(float) * width);
}

// y += x * factor
inline void add_scaled(int64_t n, float factor, const float* x, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

inline void scale(int64_t n, float factor, float* x) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

inline float dot(int64_t n, const float* x, const float* y) {
    Vec lanes = {};
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) lanes += load(x + i) * load(y + i);
    for (; i < n; ++i) tail += x[i] * y[i];
    return reduce_add(lanes) + tail;
}

inline float sum(int64_t n, const float* x) {
    Vec lanes = {};
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) lanes += load(x + i);
    for (; i < n; ++i) tail += x[i];
    return reduce_add(lanes) + tail;
}

// The largest of x and `floor`.
inline float largest(int64_t n, const float* x, float floor) {
    Vec lanes = broadcast(floor);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) lanes = maximum(load(x + i), lanes);
    float most = reduce_max(lanes);
    for (; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

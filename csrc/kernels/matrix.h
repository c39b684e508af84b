// Small dense products over row-major blocks, written so that the compiler keeps the sums in vector registers.
#ifndef SSMN_MATRIX_H
#define SSMN_MATRIX_H

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ssmn {

// A view of a matrix: element (i, j) is data[i * row + j * column].
struct Matrix {
    const float* data;
    int64_t row;
    int64_t column = 1;

    Matrix transposed() const { return {data, column, row}; }
    Matrix from_row(int64_t i) const { return {data + i * row, row, column}; }
};

// A tile has more columns than compilers unroll completely: what they unroll first they do not vectorise well. Its sums
// then stay in registers, at whatever width the machine has.
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileColumns = 32;

// c [Rows, kTileColumns] += a [Rows, p] b [p, kTileColumns]
template <int64_t Rows>
inline void add_tile(int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    float sum[Rows][kTileColumns] = {};
    for (int64_t s = 0; s < p; ++s)
        for (int64_t r = 0; r < Rows; ++r) {
            const float x = a.data[r * a.row + s * a.column];
            for (int64_t l = 0; l < kTileColumns; ++l) sum[r][l] += x * b[s * b_row + l];
        }
    for (int64_t r = 0; r < Rows; ++r)
        for (int64_t l = 0; l < kTileColumns; ++l) c[r * c_row + l] += sum[r][l];
}

// c [m, columns] += a [m, p] b [p, columns] for less than a tile of columns, through copies padded to a whole one.
inline void add_narrow_product(
    int64_t m, int64_t columns, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    constexpr int64_t panel_rows = 64;
    float panel[panel_rows * kTileColumns], sum[kTileRows * kTileColumns];
    for (int64_t s = 0; s < p; s += panel_rows) {
        const int64_t depth = std::min(panel_rows, p - s);
        for (int64_t r = 0; r < depth; ++r) {
            std::copy_n(b + (s + r) * b_row, columns, panel + r * kTileColumns);
            std::fill_n(panel + r * kTileColumns + columns, kTileColumns - columns, 0.0f);
        }
        for (int64_t i = 0; i < m; i += kTileRows) {
            const int64_t rows = std::min(kTileRows, m - i);
            const Matrix at{a.data + i * a.row + s * a.column, a.row, a.column};
            std::fill_n(sum, kTileRows * kTileColumns, 0.0f);
            if (rows == kTileRows) {
                add_tile<kTileRows>(depth, at, panel, kTileColumns, sum, kTileColumns);
            } else {
                for (int64_t r = 0; r < rows; ++r)
                    add_tile<1>(depth, at.from_row(r), panel, kTileColumns, sum + r * kTileColumns, kTileColumns);
            }
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t l = 0; l < columns; ++l) c[(i + r) * c_row + l] += sum[r * kTileColumns + l];
        }
    }
}

// c [m, n] += a [m, p] b [p, n]; the rows of b and c are contiguous.
inline void add_product(
    int64_t m, int64_t n, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    const int64_t whole = n / kTileColumns * kTileColumns;
    for (int64_t j = 0; j < whole; j += kTileColumns) {
        int64_t i = 0;
        for (; i + kTileRows <= m; i += kTileRows)
            add_tile<kTileRows>(p, a.from_row(i), b + j, b_row, c + i * c_row + j, c_row);
        for (; i < m; ++i) add_tile<1>(p, a.from_row(i), b + j, b_row, c + i * c_row + j, c_row);
    }
    if (whole < n) add_narrow_product(m, n - whole, p, a, b + whole, b_row, c + whole, c_row);
}

// c [m, n] = a [m, p] b [p, n].
inline void product(int64_t m, int64_t n, int64_t p, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * c_row, n, 0.0f);
    add_product(m, n, p, a, b, b_row, c, c_row);
}

// to [n, m] = the transpose of from [m, n].
inline void transpose(int64_t m, int64_t n, const float* from, int64_t from_row, float* to, int64_t to_row) {
    constexpr int64_t block = 16;
    for (int64_t i0 = 0; i0 < m; i0 += block)
        for (int64_t j0 = 0; j0 < n; j0 += block)
            for (int64_t j = j0; j < std::min(n, j0 + block); ++j)
                for (int64_t i = i0; i < std::min(m, i0 + block); ++i) to[j * to_row + i] = from[i * from_row + j];
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

// Reductions keep one partial result per lane: the compiler may not reorder a sum by itself.
constexpr int64_t kLanes = 32;

inline float fold(float* lanes, float tail) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0] + tail;
}

inline float dot(int64_t n, const float* x, const float* y) {
    float lanes[kLanes] = {}, tail = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * y[i + l];
    for (; i < n; ++i) tail += x[i] * y[i];
    return fold(lanes, tail);
}

inline float sum(int64_t n, const float* x) {
    float lanes[kLanes] = {}, tail = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
    for (; i < n; ++i) tail += x[i];
    return fold(lanes, tail);
}

// The largest of x and `floor`.
inline float largest(int64_t n, const float* x, float floor) {
    float lanes[kLanes];
    std::fill_n(lanes, kLanes, floor);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    for (; i < n; ++i) lanes[0] = std::max(lanes[0], x[i]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t l = 0; l < half; ++l) lanes[l] = std::max(lanes[l], lanes[l + half]);
    return lanes[0];
}

}  // namespace ssmn

#endif

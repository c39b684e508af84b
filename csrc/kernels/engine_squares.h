// Recursive least squares whose ridge does not fade, in O(F^2) a step.
//
// R = (A + m I)^-1 b, where A and b fade and m does not: no rank-1 update of the inverse is exact. So the system is
// solved by conjugate gradients, for one right-hand side, the features of the step; an inverse P of A + h I for an
// earlier, faded ridge h is the preconditioner. P itself follows exactly by Sherman and Morrison, as h fades with it;
// the product's eigenvalues lie between 1 and m / h, and P is made anew when h has fallen behind by a quarter. That
// happens once in 0.3 / forget steps.
#ifndef SSMN_ENGINE_SQUARES_H
#define SSMN_ENGINE_SQUARES_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kDoubles = kLanes / 2 < 2 ? 2 : kLanes / 2;
typedef double VecDouble __attribute__((vector_size(8 * kDoubles)));

constexpr double kNoise = 1e-6;  // ridge as a share of tr A, above what rounding A to floats leaves
constexpr double kStale = 0.75;
constexpr double kResidual = 1e-20;  // squared, beside the right-hand side's
constexpr int kRounds = 24;

SSMN_INLINE VecDouble load_doubles(const double* from) {
    VecDouble x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

SSMN_INLINE void store_doubles(double* to, VecDouble x) {
    std::memcpy(to, &x, sizeof x);
}

// Vectors are `stride` long, a multiple of 8, with zeros at the end.
inline double dot(int64_t stride, const double* x, const double* y) {
    VecDouble sum = {};
    for (int64_t i = 0; i < stride; i += kDoubles) sum += load_doubles(x + i) * load_doubles(y + i);
    double total = 0.0;
    for (int64_t l = 0; l < kDoubles; ++l) total += sum[l];
    return total;
}

// y += factor x
inline void add_scaled(int64_t stride, double factor, const double* x, double* y) {
    for (int64_t i = 0; i < stride; i += kDoubles)
        store_doubles(y + i, load_doubles(y + i) + load_doubles(x + i) * factor);
}

// y = M x of a symmetric M [rows, stride], four rows at a time.
inline void multiply(int64_t rows, int64_t stride, const double* matrix, const double* x, double* y) {
    std::fill_n(y, stride, 0.0);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const double* m = matrix + r * stride;
        for (int64_t i = 0; i < stride; i += kDoubles) {
            const VecDouble low = load_doubles(m + i) * x[r] + load_doubles(m + stride + i) * x[r + 1];
            const VecDouble high =
                load_doubles(m + 2 * stride + i) * x[r + 2] + load_doubles(m + 3 * stride + i) * x[r + 3];
            store_doubles(y + i, load_doubles(y + i) + (low + high));
        }
    }
    for (; r < rows; ++r) add_scaled(stride, x[r], matrix + r * stride, y);
}

// M = keep M + factor x x^T
inline void update(int64_t rows, int64_t stride, double keep, double factor, const double* x, double* matrix) {
    for (int64_t r = 0; r < rows; ++r) {
        double* m = matrix + r * stride;
        const double f = factor * x[r];
        for (int64_t i = 0; i < stride; i += kDoubles)
            store_doubles(m + i, load_doubles(m + i) * keep + load_doubles(x + i) * f);
    }
}

// The inverse of a symmetric positive definite matrix, in its place, by Gauss and Jordan.
inline void invert(int64_t rows, int64_t stride, double* matrix) {
    for (int64_t k = 0; k < rows; ++k) {
        double* pivot = matrix + k * stride;
        const double inverse = 1.0 / pivot[k];
        pivot[k] = 1.0;
        for (int64_t i = 0; i < stride; i += kDoubles) store_doubles(pivot + i, load_doubles(pivot + i) * inverse);
        for (int64_t r = 0; r < rows; ++r) {
            double* m = matrix + r * stride;
            if (r == k) continue;
            const double factor = m[k];
            m[k] = 0.0;
            add_scaled(stride, -factor, pivot, m);
        }
    }
}

struct Squares {
    int64_t width;   // F
    int64_t stride;  // F8
    int64_t outputs;
    double ridge;
    double* sums;     // b^T [outputs, stride]
    double* moment;   // A [width, stride]
    double* inverse;  // P [width, stride]
    double* held;     // h, one number; 0 = there is no P
    double* work;     // [5, stride]

    // A = keep A + x x^T, b = keep b + x e^T.
    void learn(const double* x, const float* errors, double keep) const {
        update(width, stride, keep, 1.0, x, moment);
        for (int64_t o = 0; o < outputs; ++o) {
            double* line = sums + o * stride;
            for (int64_t i = 0; i < stride; i += kDoubles)
                store_doubles(
                    line + i, load_doubles(line + i) * keep + load_doubles(x + i) * static_cast<double>(errors[o]));
        }
        if (!(*held * keep >= kStale * full_ridge())) {
            *held = 0.0;
            return;
        }
        *held *= keep;
        multiply(width, stride, inverse, x, work);
        update(width, stride, 1.0 / keep, -1.0 / (keep * (keep + dot(stride, x, work))), work, inverse);
    }

    // corrections = R^T x
    void correct(const double* x, float* corrections) const {
        const double m = full_ridge();
        if (m == ridge) {  // nothing was learned yet
            std::fill_n(corrections, outputs, 0.0f);
            return;
        }
        if (*held < kStale * m) prepare(m);
        double* z = work;
        if (!solve(x, m, z)) {
            prepare(m);
            solve(x, m, z);
        }
        for (int64_t o = 0; o < outputs; ++o) corrections[o] = static_cast<float>(dot(stride, z, sums + o * stride));
    }

  private:
    double full_ridge() const {
        double trace = 0.0;
        for (int64_t i = 0; i < width; ++i) trace += moment[i * (stride + 1)];
        return ridge + kNoise * trace;
    }

    void prepare(double m) const {
        std::copy_n(moment, width * stride, inverse);
        for (int64_t i = 0; i < width; ++i) inverse[i * (stride + 1)] += m;
        invert(width, stride, inverse);
        *held = m;
    }

    // z = (A + m I)^-1 x; whether it has converged.
    bool solve(const double* x, double m, double* z) const {
        double *r = work + stride, *p = r + stride, *q = p + stride, *y = q + stride;
        const double enough = kResidual * dot(stride, x, x);
        std::fill_n(z, stride, 0.0);
        std::copy_n(x, stride, r);
        multiply(width, stride, inverse, r, y);
        std::copy_n(y, stride, p);
        double across = dot(stride, r, y);
        for (int round = 0; round < kRounds; ++round) {
            multiply(width, stride, moment, p, q);
            add_scaled(stride, m, p, q);
            const double step = across / dot(stride, p, q);
            add_scaled(stride, step, p, z);
            add_scaled(stride, -step, q, r);
            if (dot(stride, r, r) <= enough) return true;
            multiply(width, stride, inverse, r, y);
            const double next = dot(stride, r, y), factor = next / across;
            across = next;
            for (int64_t i = 0; i < stride; i += kDoubles)
                store_doubles(p + i, load_doubles(y + i) + load_doubles(p + i) * factor);
        }
        return false;
    }
};

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

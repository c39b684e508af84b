// The front of a model of series: every column's running statistics, and the time that absent rows took.
#ifndef SSMN_ENGINE_FRONT_H
#define SSMN_ENGINE_FRONT_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_layout.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr double kStateEpsilon = 1.1920928955078125e-07;  // of a float, which the state is
constexpr double kLeastSquare = 1e-40;
constexpr double kOutlier = 4.0;  // deviations beyond which a value moves the statistics no further
constexpr double kLimit = 10.0;   // of standardised values
constexpr float kSettled = 8.0f;  // values after which outliers are clipped

// NaN stays NaN.
inline double standardised(double x, const Lie& lie) {
    const double z = (x - lie.mean) / lie.scale;
    return z < -kLimit ? -kLimit : z > kLimit ? kLimit : z;
}

// A column's part of a stream's state. Rounded to floats after every value: a step alone and in a sequence are the
// same.
struct Column {
    float *mean, *rest, *deviation, *count;

    Lie lie() const {
        const double m = centre(), s = *deviation;
        return {m, std::sqrt(std::max(s * s, floor_of(m) * floor_of(m) + kLeastSquare))};
    }

    // Takes a value in, and returns how the column lies from now on.
    Lie observe(double x, double least_rate) const {
        const float most = static_cast<float>(std::ceil(1.0 / least_rate));
        *count = std::min(*count + 1.0f, most);
        const double rate = std::max(1.0 / *count, least_rate), m = centre();
        double variance = static_cast<double>(*deviation) * *deviation, d = x - m;
        if (*count > kSettled && variance > floor_of(m) * floor_of(m)) {
            const double limit = kOutlier * std::sqrt(variance);
            d = std::min(std::max(d, -limit), limit);
        }
        const double now = m + rate * d;
        variance = (variance + rate * d * d) * (1.0 - rate);
        *mean = static_cast<float>(now);
        *rest = static_cast<float>(now - static_cast<double>(*mean));
        *deviation = static_cast<float>(std::sqrt(variance));
        return lie();
    }

  private:
    double centre() const { return static_cast<double>(*mean) + *rest; }
    static double floor_of(double m) { return kStateEpsilon * m; }
};

// A stream's columns, `width` of them; the pending time follows.
struct Front {
    float* numbers;
    int64_t width;

    Column column(int64_t c) const {
        return {numbers + c, numbers + width + c, numbers + 2 * width + c, numbers + 3 * width + c};
    }

    float& pending() const { return numbers[4 * width]; }
};

inline bool is_absent(const float* row, int64_t width) {
    for (int64_t c = 0; c < width; ++c)
        if (row[c] == row[c]) return false;
    return true;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

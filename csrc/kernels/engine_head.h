// What a model of series says: the head's values out of a linear layer's numbers, in place.
#ifndef SSMN_ENGINE_HEAD_H
#define SSMN_ENGINE_HEAD_H

#include <cmath>
#include <cstdint>

#include "engine_front.h"
#include "ssmn.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr float kLeastDeviation = 1e-3f;
constexpr float kUnitDeviation = 0.541324854612918f;  // ln(e - 1), whose softplus is 1

inline float softplus(float x) {
    return x > 20.0f ? x : std::log1p(std::exp(x));
}

// One output's numbers.
struct Head {
    int64_t kind, parts, middle;
    const float* gaps;  // of quantiles

    int64_t point() const { return kind == SSMN_QUANTILES ? middle : 0; }

    void spread(float* raw) const {
        if (kind == SSMN_GAUSSIAN) raw[1] = softplus(raw[1] + kUnitDeviation) + kLeastDeviation;
        if (kind != SSMN_QUANTILES) return;
        raw[middle] += gaps[middle];
        float far = 0.0f;
        for (int64_t i = middle - 1; i >= 0; --i) {
            far += softplus(raw[i] + gaps[i]);
            raw[i] = raw[middle] - far;
        }
        far = 0.0f;
        for (int64_t i = middle + 1; i < parts; ++i) {
            far += softplus(raw[i] + gaps[i]);
            raw[i] = raw[middle] + far;
        }
    }

    // Moves everything that is a place; a deviation stays.
    void shift(float by, float* values) const {
        const int64_t places = kind == SSMN_QUANTILES ? parts : 1;
        for (int64_t i = 0; i < places; ++i) values[i] += by;
    }

    void map_back(const Lie& lie, float* values) const {
        for (int64_t i = 0; i < parts; ++i) {
            const double centre = kind == SSMN_GAUSSIAN && i == 1 ? 0.0 : lie.mean;
            values[i] = static_cast<float>(values[i] * lie.scale + centre);
        }
    }
};

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

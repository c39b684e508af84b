// The plastic read-out of one stream: corrects an output, and learns from what the step before got wrong.
#ifndef SSMN_ENGINE_READOUT_H
#define SSMN_ENGINE_READOUT_H

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine_layout.h"
#include "engine_squares.h"
#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr float kShortest = 0.5f;  // of a key; the constant alone has more

struct Readout {
    int64_t kind;
    ReadoutPlaces places;
    float eta, log_keep;
    double ridge;
    float* numbers;  // the stream's
    float* floats;   // [O] to work with
    double* doubles;

    // Learns from `target` [O], which may be null, then writes the correction of this step's output for features
    // [width - 1] whose place in `key` is given: key [F] is finished here.
    void step(const float* target, float elapsed, float* key, const float* output, float* corrections) const {
        const int64_t F = places.width, O = places.outputs;
        float* last = numbers;
        float* said = numbers + places.prediction;
        const float root = 1.0f / std::sqrt(2.0f);
        scale(F - 1, root, key);
        key[F - 1] = root;
        const bool can_learn = target != nullptr && last[F - 1] > 0.0f;
        if (kind == SSMN_LMS) {
            if (can_learn) learn_slowly(target, said, last, std::max(log_keep * elapsed, kForgotten));
            for (int64_t o = 0; o < O; ++o) corrections[o] = dot(F, weights(o), key);
        } else {
            double* wide = doubles;
            const Squares squares = squares_of(wide + places.double_width);
            if (can_learn && std::none_of(target, target + O, [](float y) { return y != y; })) {
                for (int64_t o = 0; o < O; ++o) floats[o] = target[o] - said[o];
                put(last, wide);
                squares.learn(wide, floats, std::exp(static_cast<double>(log_keep * elapsed)));
            }
            put(key, wide);
            squares.correct(wide, corrections);
        }
        std::copy_n(key, F, last);
        std::copy_n(output, O, said);
    }

  private:
    float* weights(int64_t o) const { return numbers + places.memory + o * places.float_width; }

    // R = a R + eta p (e - a R^T p)^T / |p|^2, by output.
    void learn_slowly(const float* target, const float* said, const float* last, float log_kept) const {
        const int64_t F = places.width;
        const float keep = std::exp(log_kept);
        const float length = std::max(std::sqrt(dot(F, last, last)), kShortest), size = 1.0f / (length * length);
        for (int64_t o = 0; o < places.outputs; ++o) {
            const float error = target[o] - said[o];
            if (error != error) continue;
            float* line = weights(o);
            const float step = eta * size * (error - keep * dot(F, line, last));
            for (int64_t i = 0; i < F; ++i) line[i] = keep * line[i] + step * last[i];
        }
    }

    Squares squares_of(double* work) const {
        double* at = reinterpret_cast<double*>(numbers + places.memory);
        const int64_t F = places.width, stride = places.double_width, O = places.outputs;
        double* moment = at + O * stride;
        double* inverse = moment + F * stride;
        return {F, stride, O, ridge, at, moment, inverse, inverse + F * stride, work};
    }

    void put(const float* from, double* to) const {
        for (int64_t i = 0; i < places.width; ++i) to[i] = from[i];
        for (int64_t i = places.width; i < places.double_width; ++i) to[i] = 0.0;
    }
};

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

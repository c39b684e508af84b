// A test compares a kernel, run on exactly sized arrays whose outputs are poisoned with NaN, with a plain loop in
// double precision; gradients are compared with central differences of that loop.
#ifndef SSMN_TESTING_H
#define SSMN_TESTING_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "ssmn.h"

namespace testing {

using Numbers = std::vector<double>;
using Floats = std::vector<float>;
using Table = std::vector<int32_t>;

constexpr double kTolerance = 1e-5;
constexpr int kElementsPerGradient = 24;

inline int failures = 0;
inline int checks = 0;

inline void check(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

inline Numbers normal(size_t size, std::mt19937& random) {
    std::normal_distribution<double> distribution;
    Numbers values(size);
    // Rounded to float, so that the kernel and the loop see the same numbers.
    for (double& value : values) value = static_cast<float>(distribution(random));
    return values;
}

inline Floats floats(const Numbers& values) {
    return Floats(values.begin(), values.end());
}

inline Floats poisoned(size_t size) {
    return Floats(size, std::numeric_limits<float>::quiet_NaN());
}

inline double largest(const Numbers& values) {
    double most = 0.0;
    for (double value : values) most = std::max(most, std::abs(value));
    return most;
}

// Largest |difference| <= tolerance * max(1, largest |expected|).
inline void check_close(
    const Floats& actual, const Numbers& expected, const std::string& what, double tolerance = kTolerance) {
    double worst = actual.size() == expected.size() ? 0.0 : std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < actual.size() && i < expected.size(); ++i) {
        const double difference = std::abs(actual[i] - expected[i]);
        if (!(difference <= worst)) worst = difference;
    }
    check(worst <= tolerance * std::max(1.0, largest(expected)), what + ": differs by " + std::to_string(worst));
}

// `gradient` against central differences of `loss`, a function of `input`, at randomly chosen elements.
inline void check_gradient(
    const Floats& gradient,
    Numbers& input,
    const std::function<double()>& loss,
    std::mt19937& random,
    const std::string& what,
    double tolerance = kTolerance) {
    check(gradient.size() == input.size(), what + ": size");
    for (float value : gradient)
        if (!std::isfinite(value)) return check(false, what + ": not finite");
    if (input.empty()) return;
    Floats actual;
    Numbers expected;
    std::uniform_int_distribution<size_t> pick(0, input.size() - 1);
    for (int i = 0; i < kElementsPerGradient; ++i) {
        const size_t at = pick(random);
        const double kept = input[at], step = 1e-5;
        input[at] = kept + step;
        const double above = loss();
        input[at] = kept - step;
        const double below = loss();
        input[at] = kept;
        actual.push_back(gradient[at]);
        expected.push_back((above - below) / (2.0 * step));
    }
    check_close(actual, expected, what, tolerance);
}

inline double inner(const Numbers& x, const Numbers& y) {
    double sum = 0.0;
    for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
    return sum;
}

// Runs the checks with every set of kernels that can run here, or with the one that SSMN_KERNELS names; returns what
// `main` is to return.
inline int on_every_path(const char* name, void (*checks_of_all)()) {
    std::istringstream paths(std::getenv("SSMN_KERNELS") != nullptr ? ssmn_kernel_path() : ssmn_kernel_paths());
    for (std::string path; paths >> path;) {
        const int before = failures;
        check(ssmn_use_kernel_path(path.c_str()) == SSMN_OK, path);
        checks_of_all();
        if (failures > before) std::fprintf(stderr, "with the kernels %s\n", path.c_str());
    }
    std::printf("%s: %d passed, %d failed\n", name, checks - failures, failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace testing

#endif

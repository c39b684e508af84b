// What the output memory needs to work with; for the files of every path and for those that are compiled once.
#ifndef SSMN_OUTPUT_LAYOUT_H
#define SSMN_OUTPUT_LAYOUT_H

#include <cstdint>

namespace ssmn {
namespace {

constexpr int64_t kOutputChunk = 32;  // steps between two writes of the memory
constexpr int64_t kOutputRows = 64;   // tokens whose votes are computed at once
constexpr float kMostTrust = 80.0f;   // log-odds: a weight of exp(-80) is nothing, and has a logarithm

// The most errors that a step can leave: probabilities above the threshold, and the token that came.
inline int64_t most_output_errors(int64_t tokens, float threshold) {
    const double most = threshold > 0.0f ? 1.0 / static_cast<double>(threshold) + 2.0 : static_cast<double>(tokens);
    return (most < static_cast<double>(tokens) ? static_cast<int64_t>(most) : tokens) + 1;
}

inline int64_t output_workspace_floats(int64_t tokens, int64_t width, float threshold) {
    return kOutputChunk * (width + 2 * kOutputRows + tokens + 2 * most_output_errors(tokens, threshold));
}

}  // namespace
}  // namespace ssmn

#endif

// One stream's output memory M [V, D]: prediction errors are written along the key of the hidden vector that made them.
//
// A step that comes with the token y, after a step with key k' and prediction p':
//
//     M = keep M - eta e k'^T,  e = shrink(p' - onehot(y))     p = softmax(logits + M k)
//     s = share(s + r'[y]) if eta > 0,  r = log p - log softmax(logits)     logits += softplus(s + r) - softplus(s)
//
// The last is the logarithm of w p + (1 - w) softmax(logits) with s = log(w / (1 - w)): two experts, trusted by how
// they have done so far. share has w = (1 - switch) w + switch / 2.
//
// shrink takes `threshold` from every |error|, down to 0: it is continuous, so that rounding cannot decide what is
// written, and few rows are left of a distribution. That makes the exact steps cheap in chunks: one product with the
// memory as it was before the chunk, and for every pair of steps the product of two keys and a few rows.
#ifndef SSMN_OUTPUT_MEMORY_H
#define SSMN_OUTPUT_MEMORY_H

#include <algorithm>
#include <cmath>

#include "output_layout.h"
#include "tile.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

struct OutputStep {
    float* logits;     // [V], in and out
    const float* key;  // [D], of unit length
    int64_t token;
    float eta;
    float log_keep;
};

struct OutputStreamState {
    float* memory;  // [V, row]
    int64_t row;
    float* key;         // [D]
    float* prediction;  // [V]
    float* ratio;       // [V]
    float* trust;       // [1]
};

class OutputMemory {
  public:
    // `workspace` has output_workspace_floats.
    OutputMemory(int64_t tokens, int64_t width, float threshold, float share, float* workspace)
        : tokens_(tokens),
          width_(width),
          room_(most_output_errors(tokens, threshold)),
          threshold_(threshold),
          switch_(share) {
        keys_ = workspace;
        block_ = keys_ + width * kOutputChunk;
        turned_ = block_ + kOutputRows * kOutputChunk;
        votes_ = turned_ + kOutputRows * kOutputChunk;
        errors_ = votes_ + tokens * kOutputChunk;
        places_ = reinterpret_cast<int32_t*>(errors_ + kOutputChunk * room_);
    }

    void run(const OutputStep* steps, int64_t count, const OutputStreamState& state) {
        for (int64_t first = 0; first < count; first += kOutputChunk)
            run_chunk(steps + first, smaller(kOutputChunk, count - first), state);
    }

  private:
    void run_chunk(const OutputStep* steps, int64_t count, const OutputStreamState& state) {
        float kept[kOutputChunk + 1];  // logarithms: of what is kept of the memory before the chunk
        kept[0] = 0.0f;
        for (int64_t t = 0; t < count; ++t) kept[t + 1] = kept[t] + steps[t].log_keep;
        recall(steps, count, kept, state);
        for (int64_t t = 0; t < count; ++t) {
            float* votes = votes_ + t * tokens_;
            found_[t] = find_errors(steps[t], t, state.prediction);
            if (steps[t].eta > 0.0f) *state.trust = shared(*state.trust + state.ratio[steps[t].token]);
            for (int64_t j = 0; j <= t; ++j) {
                if (found_[j] == 0) continue;
                const float across = dot(width_, key_before(steps, j, state), steps[t].key);
                const float factor = -steps[j].eta * std::exp(kept[t + 1] - kept[j + 1]) * across;
                for (int64_t i = 0; i < found_[j]; ++i) votes[place(j, i)] += factor * error(j, i);
            }
            predict(steps[t].logits, votes, state);
        }
        if (kept[count] != 0.0f) {
            const float factor = std::exp(kept[count]);
            for (int64_t v = 0; v < tokens_; ++v) scale(width_, factor, state.memory + v * state.row);
        }
        for (int64_t j = 0; j < count; ++j) {
            const float factor = -steps[j].eta * std::exp(kept[count] - kept[j + 1]);
            for (int64_t i = 0; i < found_[j]; ++i)
                add_scaled(
                    width_, factor * error(j, i), key_before(steps, j, state), state.memory + place(j, i) * state.row);
        }
        std::memcpy(state.key, steps[count - 1].key, sizeof(float) * static_cast<size_t>(width_));
    }

    static const float* key_before(const OutputStep* steps, int64_t j, const OutputStreamState& state) {
        return j == 0 ? state.key : steps[j - 1].key;
    }

    // votes = keep M k with the memory before the chunk.
    void recall(const OutputStep* steps, int64_t count, const float* kept, const OutputStreamState& state) {
        if (count == 1) {
            const float factor = std::exp(kept[1]);
            for (int64_t v = 0; v < tokens_; ++v)
                votes_[v] = factor * dot(width_, state.memory + v * state.row, steps[0].key);
            return;
        }
        const int64_t columns = whole_vectors(count);
        for (int64_t i = 0; i < width_; ++i) {
            float* line = keys_ + i * columns;
            for (int64_t t = 0; t < columns; ++t) line[t] = t < count ? steps[t].key[i] : 0.0f;
        }
        for (int64_t first = 0; first < tokens_; first += kOutputRows) {
            const int64_t rows = smaller(kOutputRows, tokens_ - first);
            multiply_all(
                rows, columns, width_, Matrix{state.memory + first * state.row, state.row}, keys_, columns,
                Into{block_, columns});
            transpose_block(rows, columns, block_, columns, turned_, kOutputRows);
            for (int64_t t = 0; t < count; ++t) {
                float* votes = votes_ + t * tokens_ + first;
                const float factor = std::exp(kept[t + 1]);
                for (int64_t v = 0; v < rows; ++v) votes[v] = factor * turned_[t * kOutputRows + v];
            }
        }
    }

    // What the prediction before a step got wrong: their number; a prediction of zeros has never been made.
    int64_t find_errors(const OutputStep& step, int64_t t, const float* prediction) {
        if (step.eta == 0.0f) return 0;
        int64_t count = 0;
        constexpr int64_t block = 4 * kLanes;
        for (int64_t first = 0; first < tokens_; first += block) {
            const int64_t last = smaller(tokens_, first + block);
            if (last - first == block) {
                const float* p = prediction + first;
                const Vec even = maximum(load(p), load(p + kLanes));
                const Vec odd = maximum(load(p + 2 * kLanes), load(p + 3 * kLanes));
                if (reduce_max(maximum(even, odd)) <= threshold_) continue;
            }
            for (int64_t v = first; v < last; ++v)
                if (prediction[v] > threshold_ && v != step.token)
                    keep_error(t, count++, v, prediction[v] - threshold_);
        }
        const float missing = prediction[step.token] - 1.0f + threshold_;
        if (missing < 0.0f) keep_error(t, count++, step.token, missing);
        return count;
    }

    void keep_error(int64_t t, int64_t i, int64_t token, float error) {
        places_[t * room_ + i] = static_cast<int32_t>(token);
        errors_[t * room_ + i] = error;
    }

    int64_t place(int64_t t, int64_t i) const { return places_[t * room_ + i]; }
    float error(int64_t t, int64_t i) const { return errors_[t * room_ + i]; }

    float largest(const float* x) const {
        Vec lanes = broadcast(x[0]);
        int64_t v = 0;
        for (; v + kLanes <= tokens_; v += kLanes) lanes = maximum(load(x + v), lanes);
        float most = reduce_max(lanes);
        for (; v < tokens_; ++v) most = x[v] > most ? x[v] : most;
        return most;
    }

    // The log-odds after both experts have shared a part of their weight.
    float shared(float trust) const {
        const double odds = std::exp(static_cast<double>(std::min(std::max(trust, -kMostTrust), kMostTrust)));
        const double corrected = odds / (1.0 + odds), plain = 1.0 / (1.0 + odds);
        const double half = 0.5 * static_cast<double>(switch_), kept = 1.0 - static_cast<double>(switch_);
        return static_cast<float>(std::log(kept * corrected + half) - std::log(kept * plain + half));
    }

    struct Weights {
        float most, total;
    };

    // exp(x - most), and their sum.
    Weights weigh(const float* x, float* weights) const {
        const float most = largest(x);
        Vec lanes = {};
        float tail = 0.0f;
        int64_t v = 0;
        for (; v + kLanes <= tokens_; v += kLanes) {
            const Vec weight = exp_nonpositive(load(x + v) - broadcast(most));
            store(weights + v, weight);
            lanes += weight;
        }
        if (v < tokens_) {
            const int64_t left = tokens_ - v;
            store_part(weights + v, exp_nonpositive(load_part(x + v, left) - broadcast(most)), left);
            for (; v < tokens_; ++v) tail += weights[v];
        }
        return {most, reduce_add(lanes) + tail};
    }

    // Both experts, and their mixture in place of the logits.
    void predict(float* logits, const float* votes, const OutputStreamState& state) const {
        const Weights plain = weigh(logits, state.ratio);
        for (int64_t v = 0; v < tokens_; ++v) state.prediction[v] = logits[v] + votes[v];
        const Weights corrected = weigh(state.prediction, state.prediction);
        scale(tokens_, 1.0f / corrected.total, state.prediction);
        const float more = corrected.most - plain.most + std::log(corrected.total / plain.total);
        for (int64_t v = 0; v < tokens_; ++v) state.ratio[v] = votes[v] - more;
        const Vec trust = broadcast(*state.trust), untouched = softplus(trust);
        int64_t v = 0;
        for (; v + kLanes <= tokens_; v += kLanes)
            store(logits + v, load(logits + v) + (softplus(trust + load(state.ratio + v)) - untouched));
        if (const int64_t left = tokens_ - v; left > 0) {
            const Vec change = softplus(trust + load_part(state.ratio + v, left)) - untouched;
            store_part(logits + v, load_part(logits + v, left) + change, left);
        }
    }

    // log(1 + exp(x)), within 2e-7: log(1 + u) = 2 artanh(u / (2 + u)) as a series.
    static SSMN_INLINE Vec softplus(Vec x) {
        const Vec zero = {};
        const Vec u = exp_nonpositive(x < zero ? x : -x);
        const Vec z = u / (u + 2.0f), square = z * z;
        Vec poly = square * (1.0f / 11.0f) + 1.0f / 9.0f;
        poly = poly * square + 1.0f / 7.0f;
        poly = poly * square + 1.0f / 5.0f;
        poly = poly * square + 1.0f / 3.0f;
        return maximum(x, zero) + 2.0f * (poly * (square * z) + z);
    }

    const int64_t tokens_, width_, room_;
    const float threshold_, switch_;
    float *keys_, *block_, *turned_, *votes_, *errors_;
    int32_t* places_;
    int64_t found_[kOutputChunk];
};

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

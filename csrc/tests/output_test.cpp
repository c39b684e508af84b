// The output memory against a loop in double that takes one step after the other.
#include <cstdlib>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

struct Case {
    std::string name;
    ssmn_output_call call;
    bool has_mask = false, has_reset = false;
    std::vector<int64_t> cu_seqlens = {};
    double eta = 1.5, decay = 0.05;
    int32_t threads = 1;
};

struct Streams {
    Numbers memory, key, prediction, ratio, trust;
};

// One open step of stream n; `logits` becomes what is adapted.
void step(
    const ssmn_output_call& call,
    Streams& s,
    int64_t n,
    const double* k,
    int64_t token,
    double eta,
    double log_keep,
    double* logits) {
    const int64_t V = call.tokens, D = call.width;
    double* memory = s.memory.data() + n * V * D;
    double* key = s.key.data() + n * D;
    double* prediction = s.prediction.data() + n * V;
    double* ratio = s.ratio.data() + n * V;
    double& trust = s.trust[n];
    if (eta > 0.0) {
        const double share = static_cast<double>(call.switch_share);
        const double odds = std::exp(std::min(std::max(trust + ratio[token], -80.0), 80.0));
        const double corrected = (1.0 - share) * odds / (1.0 + odds) + share / 2.0;
        trust = std::log(corrected / ((1.0 - share) / (1.0 + odds) + share / 2.0));
    }
    Numbers votes(V);
    double plain = 0.0, total = 0.0;
    for (int64_t v = 0; v < V; ++v) {
        const double raw = prediction[v] - (v == token ? 1.0 : 0.0);
        const double size = std::max(std::abs(raw) - static_cast<double>(call.threshold), 0.0);
        const double error = raw < 0.0 ? -size : size;
        for (int64_t i = 0; i < D; ++i) {
            double& m = memory[v * D + i];
            m = std::exp(log_keep) * m - eta * error * key[i];
            votes[v] += m * k[i];
        }
        plain += std::exp(logits[v]);
        total += prediction[v] = std::exp(logits[v] + votes[v]);
    }
    for (int64_t v = 0; v < V; ++v) {
        prediction[v] /= total;
        ratio[v] = votes[v] - std::log(total / plain);
        logits[v] += std::log1p(std::exp(trust + ratio[v])) - std::log1p(std::exp(trust));
    }
    std::copy_n(k, D, key);
}

Numbers unit_rows(Numbers values, size_t width) {
    for (size_t i = 0; i < values.size(); i += width) {
        double total = 0.0;
        for (size_t j = 0; j < width; ++j) total += values[i + j] * values[i + j];
        for (size_t j = 0; j < width; ++j) values[i + j] = static_cast<float>(values[i + j] / std::sqrt(total));
    }
    return values;
}

void run(const Case& c) {
    const ssmn_output_call& call = c.call;
    std::mt19937 random(7);
    const size_t V = call.tokens, D = call.width, N = call.streams, steps = call.rows * call.steps;
    Numbers logits = normal(steps * V, random);
    for (double& x : logits) x = static_cast<float>(2.0 * x);
    const Numbers keys = unit_rows(normal(steps * D, random), D);
    Streams s{
        normal(N * V * D, random), unit_rows(normal(N * D, random), D), Numbers(N * V), Numbers(N * V),
        normal(N, random)};
    for (size_t n = 0; n < N; ++n) {  // a distribution, or nothing yet
        for (size_t v = 0; v < V; ++v) s.prediction[n * V + v] = n % 3 == 2 ? 0.0 : 1.0f / static_cast<float>(V);
        if (n % 3 == 2) std::fill_n(s.key.begin() + n * D, D, 0.0);
        for (size_t v = 0; v < V; ++v) s.ratio[n * V + v] = n % 3 == 2 ? 0.0 : 1.0 - static_cast<double>(v % 3);
    }
    std::vector<int64_t> tokens(steps);
    std::vector<uint8_t> mask(steps, 1), reset(steps, 0);
    Numbers eta(steps), log_keep(steps);
    std::uniform_real_distribution<double> share;
    for (size_t t = 0; t < steps; ++t) {
        tokens[t] = static_cast<int64_t>(share(random) * static_cast<double>(V));
        if (c.has_mask) mask[t] = share(random) < 0.7;
        if (c.has_reset) reset[t] = share(random) < 0.05;
        eta[t] = static_cast<float>(share(random) < 0.1 ? 0.0 : c.eta * share(random));
        log_keep[t] = static_cast<float>(std::log1p(-c.decay) * share(random));
    }
    const Floats given[] = {floats(keys),  floats(eta),          floats(log_keep), floats(logits), floats(s.memory),
                            floats(s.key), floats(s.prediction), floats(s.ratio),  floats(s.trust)};
    Floats adapted = poisoned(steps * V), memory = poisoned(N * V * D), key = poisoned(N * D);
    Floats prediction = poisoned(N * V), ratio = poisoned(N * V), trust = poisoned(N);
    const int32_t status = ssmn_output_memory(
        &call, given[0].data(), tokens.data(), given[1].data(), given[2].data(), c.has_mask ? mask.data() : nullptr,
        c.has_reset ? reset.data() : nullptr, c.cu_seqlens.empty() ? nullptr : c.cu_seqlens.data(), given[3].data(),
        given[4].data(), given[5].data(), given[6].data(), given[7].data(), given[8].data(), adapted.data(),
        memory.data(), key.data(), prediction.data(), ratio.data(), trust.data(), c.threads);
    check(status == SSMN_OK, c.name + ": status");
    for (int64_t n = 0; n < call.streams; ++n) {
        const int64_t first = c.cu_seqlens.empty() ? n * call.steps : c.cu_seqlens[n];
        const int64_t last = c.cu_seqlens.empty() ? first + call.steps : c.cu_seqlens[n + 1];
        for (int64_t t = first; t < last; ++t) {
            if (reset[t]) {
                std::fill_n(s.memory.begin() + n * V * D, V * D, 0.0);
                std::fill_n(s.key.begin() + n * D, D, 0.0);
                std::fill_n(s.prediction.begin() + n * V, V, 0.0);
                std::fill_n(s.ratio.begin() + n * V, V, 0.0);
                s.trust[n] = 0.0;
            }
            if (mask[t]) step(call, s, n, keys.data() + t * D, tokens[t], eta[t], log_keep[t], logits.data() + t * V);
        }
    }
    check_close(adapted, logits, c.name + ": adapted", 2e-5);
    check_close(memory, s.memory, c.name + ": memory", 2e-5);
    check_close(key, s.key, c.name + ": key");
    check_close(prediction, s.prediction, c.name + ": prediction", 2e-5);
    check_close(ratio, s.ratio, c.name + ": ratio", 2e-5);
    check_close(trust, s.trust, c.name + ": trust", 2e-5);
}

void check_all() {
    run({"one step", {3, 1, 37, 12, 3, 0.02f, 0.01f}});
    run({"odd sizes", {2, 67, 301, 19, 2, 0.02f, 0.01f}});
    run({"whole vectors", {1, 64, 128, 32, 1, 0.02f, 0.01f}});
    run({"no threshold", {2, 35, 21, 5, 2, 0.0f, 0.01f}});
    run({"no decay", {2, 40, 50, 16, 2, 0.1f, 0.01f}, false, false, {}, 1.5, 0.0});
    run({"a memory that is lost", {1, 40, 50, 16, 1, 0.02f, 0.01f}, false, false, {}, 1.5, 1.0 - 1e-9});
    run({"one token", {1, 5, 1, 3, 1, 0.02f, 0.0f}});
    run({"masks and resets", {3, 90, 40, 10, 3, 0.02f, 0.01f}, true, true});
    run({"packed", {1, 80, 40, 10, 5, 0.02f, 0.01f}, true, true, {0, 0, 33, 34, 80, 80}});
    run({"threads", {4, 70, 600, 24, 4, 0.02f, 0.01f}, true, false, {}, 1.5, 0.05, 3});
    run({"nothing", {2, 0, 11, 4, 2, 0.02f, 0.01f}});
}

}  // namespace

int main() {
    return on_every_path("output", check_all);
}

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

struct Case {
    std::string name;
    ssmn_attention_sizes sizes;
    bool has_sinks;
    Table lo, hi;
    float scale = 0.3f;
    Numbers q, k, v, sinks;

    Case(const std::string& name, const ssmn_attention_sizes& sizes, bool has_sinks, Table lo, Table hi)
        : name(name), sizes(sizes), has_sinks(has_sinks), lo(std::move(lo)), hi(std::move(hi)) {
        std::mt19937 random(3);
        q = normal(sizes.rows * sizes.steps * sizes.query_heads * sizes.width, random);
        k = normal(sizes.rows * sizes.keys * sizes.key_heads * sizes.width, random);
        v = normal(k.size(), random);
        if (has_sinks) sinks = normal(sizes.query_heads, random);
    }
};

struct Result {
    Numbers o, lse;
};

Result loop(const Case& c) {
    const int64_t T = c.sizes.steps, E = c.sizes.keys, D = c.sizes.width, Hq = c.sizes.query_heads;
    const int64_t Hkv = c.sizes.key_heads;
    Result result{Numbers(c.q.size()), Numbers(c.sizes.rows * T * Hq)};
    for (int64_t b = 0; b < c.sizes.rows; ++b)
        for (int64_t t = 0; t < T; ++t)
            for (int64_t h = 0; h < Hq; ++h) {
                const int64_t query = (b * T + t) * Hq + h;
                double denominator = c.has_sinks ? std::exp(c.sinks[h]) : 0.0;
                for (int64_t j = c.lo[b * T + t]; j < c.hi[b * T + t]; ++j) {
                    const int64_t key = (b * E + j) * Hkv + h / (Hq / Hkv);
                    double score = 0.0;
                    for (int64_t d = 0; d < D; ++d) score += c.q[query * D + d] * c.k[key * D + d];
                    const double weight = std::exp(static_cast<double>(c.scale) * score);
                    denominator += weight;
                    for (int64_t d = 0; d < D; ++d) result.o[query * D + d] += weight * c.v[key * D + d];
                }
                for (int64_t d = 0; d < D && denominator > 0.0; ++d) result.o[query * D + d] /= denominator;
                result.lse[query] = std::log(denominator);
            }
    return result;
}

void run(Case c, int32_t threads) {
    const std::string name = c.name + (c.has_sinks ? ", sinks" : "") + ", " + std::to_string(threads) + " threads";
    const Floats q = floats(c.q), k = floats(c.k), v = floats(c.v), sinks = floats(c.sinks);
    const float* sinks_or_null = c.has_sinks ? sinks.data() : nullptr;
    const Result expected = loop(c);
    Floats o = poisoned(q.size()), lse = poisoned(expected.lse.size());
    check(
        ssmn_banded_attention(
            &c.sizes, q.data(), k.data(), v.data(), c.lo.data(), c.hi.data(), sinks_or_null, c.scale, o.data(),
            lse.data(), threads) == SSMN_OK,
        name + ": forward");
    check_close(o, expected.o, name + ": o");

    // An empty denominator has no logarithm to compare, and no gradient.
    std::mt19937 random(7);
    const Numbers on_o = normal(o.size(), random);
    Numbers on_lse = normal(lse.size(), random), finite = expected.lse;
    Floats finite_lse = lse;
    for (size_t i = 0; i < finite.size(); ++i)
        if (std::isinf(finite[i])) {
            check(std::isinf(lse[i]) && lse[i] < 0.0f, name + ": lse of nothing");
            finite[i] = on_lse[i] = finite_lse[i] = 0.0f;
        }
    check_close(finite_lse, finite, name + ": lse");

    const auto loss = [&] {
        const Result result = loop(c);
        double sum = inner(result.o, on_o);
        for (size_t i = 0; i < on_lse.size(); ++i)
            if (!std::isinf(result.lse[i])) sum += result.lse[i] * on_lse[i];
        return sum;
    };
    Floats d_q = poisoned(q.size()), d_k = poisoned(k.size()), d_v = poisoned(v.size());
    Floats d_sinks = poisoned(sinks.size());
    ssmn_banded_attention_backward(
        &c.sizes, q.data(), k.data(), v.data(), c.lo.data(), c.hi.data(), sinks_or_null, c.scale, o.data(), lse.data(),
        floats(on_o).data(), floats(on_lse).data(), d_q.data(), d_k.data(), d_v.data(),
        c.has_sinks ? d_sinks.data() : nullptr, threads);
    check_gradient(d_q, c.q, loss, random, name + ": d_q");
    check_gradient(d_k, c.k, loss, random, name + ": d_k");
    check_gradient(d_v, c.v, loss, random, name + ": d_v");
    if (c.has_sinks) check_gradient(d_sinks, c.sinks, loss, random, name + ": d_sinks");
}

}  // namespace

int main() {
    for (int64_t steps : {0, 1, 31, 70})
        for (int32_t window : {1, 9, 100})
            for (bool has_sinks : {false, true})
                for (int32_t threads : {1, 3}) {
                    const int32_t before = 4;
                    Table lo(2 * steps), hi(2 * steps);
                    for (int64_t i = 0; i < 2 * steps; ++i) {
                        hi[i] = static_cast<int32_t>(i % steps) + before + 1;
                        lo[i] = std::max(hi[i] - window, i < steps ? 0 : 3);
                        if (i % 10 == 7) lo[i] = hi[i] = 0;
                    }
                    const std::string name = std::to_string(steps) + " steps, window " + std::to_string(window);
                    run(Case(name, {2, steps, steps + before, 6, 3, 5}, has_sinks, lo, hi), threads);
                }
    return report("window");
}

// The diagonal recurrence and its gradients against a loop in double that takes one step after the other.
#include <complex>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

struct Case {
    std::string name;
    ssmn_scan_call call;
    bool has_state = true, has_mask = false, has_reset = false;
    std::vector<int64_t> cu_seqlens = {};
    int32_t threads = 1;
};

struct Problem {
    Numbers a, x, state, weights, state_weights;
    std::vector<uint8_t> mask, reset;
};

struct Outcome {
    Numbers h, final_state;
};

Outcome walk(const Case& c, const Problem& p) {
    const ssmn_scan_call& call = c.call;
    const int64_t C = call.channels;
    Outcome out{Numbers(p.x.size()), Numbers(static_cast<size_t>(call.streams * 2 * C))};
    for (int64_t n = 0; n < call.streams; ++n) {
        const int64_t first = c.cu_seqlens.empty() ? n * call.steps : c.cu_seqlens[n];
        const int64_t last = c.cu_seqlens.empty() ? first + call.steps : c.cu_seqlens[n + 1];
        for (int64_t i = 0; i < C; ++i) {
            std::complex<double> h = 0.0;
            if (c.has_state) h = {p.state[2 * n * C + i], p.state[(2 * n + 1) * C + i]};
            for (int64_t t = first; t < last; ++t) {
                const int64_t real = 2 * t * C + i, imaginary = real + C, at = call.shared ? i : real;
                if (p.reset[t]) h = 0.0;
                if (p.mask[t])
                    h = std::complex<double>(p.a[at], p.a[at + C]) * h +
                        std::complex<double>(p.x[real], p.x[imaginary]);
                out.h[real] = h.real();
                out.h[imaginary] = h.imag();
            }
            out.final_state[2 * n * C + i] = h.real();
            out.final_state[(2 * n + 1) * C + i] = h.imag();
        }
    }
    return out;
}

void run(const Case& c) {
    const ssmn_scan_call& call = c.call;
    std::mt19937 random(5);
    const size_t C = call.channels, N = call.streams, steps = call.rows * call.steps;
    const size_t rows = call.shared ? 1 : steps;
    Problem p{
        normal(rows * 2 * C, random),
        normal(steps * 2 * C, random),
        normal(N * 2 * C, random),
        normal(steps * 2 * C, random),
        normal(N * 2 * C, random),
        {},
        {}};
    for (size_t r = 0; r < rows; ++r)
        for (size_t i = 0; i < C; ++i) {  // within the unit circle, some of them on its edge and some at 0
            double &real = p.a[2 * r * C + i], &imaginary = p.a[(2 * r + 1) * C + i];
            const double size = std::hypot(real, imaginary), wanted = (r + i) % 7 == 0 ? 0.0 : std::min(size, 0.999);
            real = static_cast<float>(real * wanted / size);
            imaginary = static_cast<float>(imaginary * wanted / size);
        }
    p.mask.assign(steps, 1);
    p.reset.assign(steps, 0);
    std::uniform_real_distribution<double> share;
    for (size_t t = 0; t < steps; ++t) {
        if (c.has_mask) p.mask[t] = share(random) < 0.7;
        if (c.has_reset) p.reset[t] = share(random) < 0.1;
    }
    const uint8_t* mask = c.has_mask ? p.mask.data() : nullptr;
    const uint8_t* reset = c.has_reset ? p.reset.data() : nullptr;
    const int64_t* bounds = c.cu_seqlens.empty() ? nullptr : c.cu_seqlens.data();
    const Floats a = floats(p.a), x = floats(p.x), state = floats(p.state);
    const Floats d_h = floats(p.weights), d_final = floats(p.state_weights);
    const float* start = c.has_state ? state.data() : nullptr;
    Floats h = poisoned(steps * 2 * C), final_state = poisoned(N * 2 * C);
    check(
        ssmn_scan(&call, a.data(), x.data(), mask, reset, bounds, start, h.data(), final_state.data(), c.threads) ==
            SSMN_OK,
        c.name + ": status");
    const Outcome wanted = walk(c, p);
    check_close(h, wanted.h, c.name + ": h");
    check_close(final_state, wanted.final_state, c.name + ": final state");

    Floats again = poisoned(h.size());
    ssmn_scan(&call, a.data(), x.data(), mask, reset, bounds, start, again.data(), nullptr, c.threads);
    check(again == h, c.name + ": without the final state");

    Floats d_a = poisoned((call.shared ? N : steps) * 2 * C), d_x = poisoned(steps * 2 * C);
    Floats d_state = poisoned(c.has_state ? N * 2 * C : 0);
    check(
        ssmn_scan_backward(
            &call, a.data(), mask, reset, bounds, start, h.data(), d_h.data(), d_final.data(), d_a.data(), d_x.data(),
            c.has_state ? d_state.data() : nullptr, c.threads) == SSMN_OK,
        c.name + ": status of the gradients");
    if (call.shared) {
        Floats sum(2 * C, 0.0f);
        for (size_t i = 0; i < d_a.size(); ++i) sum[i % (2 * C)] += d_a[i];
        d_a = sum;
    }
    const auto loss = [&] {
        const Outcome out = walk(c, p);
        return inner(out.h, p.weights) + inner(out.final_state, p.state_weights);
    };
    check_gradient(d_a, p.a, loss, random, c.name + ": d_a");
    check_gradient(d_x, p.x, loss, random, c.name + ": d_x");
    if (c.has_state) check_gradient(d_state, p.state, loss, random, c.name + ": d_initial_state");

    std::fill(p.state_weights.begin(), p.state_weights.end(), 0.0);
    Floats d_x_alone = poisoned(d_x.size()), d_a_alone = poisoned((call.shared ? N : steps) * 2 * C);
    ssmn_scan_backward(
        &call, a.data(), mask, reset, bounds, start, h.data(), d_h.data(), nullptr, d_a_alone.data(), d_x_alone.data(),
        c.has_state ? d_state.data() : nullptr, c.threads);
    check_gradient(d_x_alone, p.x, loss, random, c.name + ": d_x without d_final_state");
}

void check_all() {
    run({"one step", {3, 1, 5, 3, 0}});
    run({"odd sizes", {2, 37, 19, 2, 0}});
    run({"several stretches", {1, 23, 301, 1, 0}});
    run({"whole vectors", {2, 40, 128, 2, 0}});
    run({"shared", {3, 29, 21, 3, 1}});
    run({"fresh", {2, 31, 7, 2, 0}, false});
    run({"fresh and shared", {2, 31, 7, 2, 1}, false, true, true});
    run({"masks and resets", {3, 50, 11, 3, 0}, true, true, true});
    run({"packed", {1, 60, 13, 5, 0}, true, true, true, {0, 0, 23, 24, 60, 60}});
    run({"packed and shared", {1, 60, 13, 5, 1}, true, false, false, {0, 0, 23, 24, 60, 60}});
    run({"packed and fresh", {1, 9, 3, 4, 0}, false, true, true, {0, 4, 4, 8, 9}});
    run({"threads", {5, 700, 160, 5, 0}, true, true, true, {}, 3});
    run({"nothing", {2, 0, 6, 2, 0}});
}

}  // namespace

int main() {
    return on_every_path("scan", check_all);
}

// The memory against a plain loop, in one call and written and read apart: rules, masks, resets, packing, widths off
// every edge, float and bfloat16.
#include <cstring>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

using Bytes = std::vector<uint8_t>;

struct Case {
    std::string name;
    ssmn_memory_call call;
    Bytes mask, reset;
    std::vector<int64_t> bounds;
    bool has_state;
    Numbers q, k, v, eta, log_decay, erase, initial_state;

    Case(const std::string& name, const ssmn_memory_call& call, bool has_state, uint32_t seed)
        : name(name), call(call), has_state(has_state) {
        std::mt19937 random(seed);
        const auto inputs = [&](size_t count, double scale) {
            Numbers values = normal(count, random);
            for (double& x : values) x = rounded(x * scale);
            return values;
        };
        const double scale = 1.0 / std::sqrt(static_cast<double>(call.key_width));
        q = inputs(key_count(), 1.0);
        k = inputs(key_count(), scale);
        v = inputs(value_count(), 1.0);
        eta = share(random);
        erase = call.rule == SSMN_ERASE ? share(random) : Numbers{};
        log_decay = normal(scalar_count(), random);
        for (double& x : log_decay) x = static_cast<float>(-0.1 * std::exp(x));
        if (has_state) initial_state = normal(call.streams * state_count(), random);
    }

    // As the kernel is given it: a bfloat16 has 8 bits.
    double rounded(double x) const {
        if (call.half == 0) return static_cast<float>(x);
        int exponent = 0;
        const double fraction = std::frexp(x, &exponent);
        return std::ldexp(std::nearbyint(fraction * 256.0), exponent - 8);
    }
    Numbers share(std::mt19937& random) const {
        Numbers values = normal(scalar_count(), random);
        for (double& x : values) x = static_cast<float>(1.0 / (1.0 + std::exp(x)));
        return values;
    }
    void close_some(bool by_head, uint32_t seed) {
        std::mt19937 random(seed);
        call.mask_heads = static_cast<int32_t>(by_head ? call.heads : 1);
        mask.resize(by_head ? scalar_count() : call.rows * call.steps);
        for (uint8_t& open : mask) open = random() % 4 != 0;
    }
    void reset_some(uint32_t seed, int share) {
        std::mt19937 random(seed);
        reset.resize(call.rows * call.steps);
        for (uint8_t& fresh : reset) fresh = random() % share == 0;
    }

    size_t scalar_count() const { return call.rows * call.steps * call.heads; }
    size_t key_count() const { return scalar_count() * call.key_width; }
    size_t value_count() const { return scalar_count() * call.value_width; }
    size_t state_count() const { return call.heads * call.key_width * call.value_width; }
    bool open(int64_t b, int64_t t, int64_t h) const {
        const int64_t step = b * call.steps + t;
        return mask.empty() || mask[call.mask_heads > 1 ? step * call.heads + h : step] != 0;
    }
};

struct Result {
    Numbers o, final_state;
};

// The definition, step by step.
Result loop(const Case& c) {
    const int64_t T = c.call.steps, H = c.call.heads, K = c.call.key_width, V = c.call.value_width;
    Result result{Numbers(c.value_count()), Numbers(c.call.streams * c.state_count())};
    Numbers& final_state = result.final_state;
    for (int64_t n = 0; n < c.call.streams; ++n)
        for (int64_t h = 0; h < H; ++h) {
            double* state = &final_state[(n * H + h) * K * V];
            if (c.has_state) std::copy_n(&c.initial_state[(n * H + h) * K * V], K * V, state);
            const int64_t b = c.bounds.empty() ? n : 0;
            const int64_t first = c.bounds.empty() ? 0 : c.bounds[n], last = c.bounds.empty() ? T : c.bounds[n + 1];
            for (int64_t t = first; t < last; ++t) {
                const int64_t at = (b * T + t) * H + h;
                if (!c.reset.empty() && c.reset[b * T + t] != 0) std::fill_n(state, K * V, 0.0);
                const bool open = c.open(b, t, h);
                const double write = open ? c.eta[at] : 0.0, keep = open ? std::exp(c.log_decay[at]) : 1.0;
                double erase = 0.0;
                if (open && c.call.rule == SSMN_DELTA) erase = c.eta[at];
                if (open && c.call.rule == SSMN_ERASE) erase = c.erase[at];
                for (int64_t j = 0; j < V; ++j) {
                    double recalled = 0.0;
                    for (int64_t i = 0; i < K && erase != 0.0; ++i) recalled += c.k[at * K + i] * state[i * V + j];
                    for (int64_t i = 0; i < K; ++i) {
                        double& s = state[i * V + j];
                        const double key = c.k[at * K + i];
                        s = keep * (s - erase * recalled * key) + write * key * c.v[at * V + j];
                        result.o[at * V + j] += s * c.q[at * K + i];
                    }
                }
            }
        }
    return result;
}

// An array as the kernel stores it.
struct Stored {
    bool half;
    Floats wide;
    std::vector<uint16_t> narrow;

    Stored(const Numbers& values, bool half) : half(half), wide(floats(values)) {
        if (!half) return;
        narrow.resize(wide.size());
        for (size_t i = 0; i < wide.size(); ++i) {
            uint32_t bits;
            std::memcpy(&bits, &wide[i], sizeof bits);
            narrow[i] = static_cast<uint16_t>(bits >> 16);
        }
    }
    Stored(size_t size, bool half) : Stored(Numbers(size, std::numeric_limits<double>::quiet_NaN()), half) {}

    void* data() { return half ? static_cast<void*>(narrow.data()) : static_cast<void*>(wide.data()); }
    Floats values() const {
        if (!half) return wide;
        Floats result(narrow.size());
        for (size_t i = 0; i < narrow.size(); ++i) {
            const uint32_t bits = static_cast<uint32_t>(narrow[i]) << 16;
            std::memcpy(&result[i], &bits, sizeof bits);
        }
        return result;
    }
};

struct Outcome {
    std::vector<Floats> arrays;
};

const char* const kNames[] = {"o",       "final_state",    "d_q", "d_k", "d_v", "d_eta", "d_log_decay",
                              "d_erase", "d_initial_state"};

Outcome compute(const Case& c, const Numbers& on_o, const Numbers& on_final, int32_t threads) {
    const bool half = c.call.half != 0, erases = c.call.rule == SSMN_ERASE;
    Stored q(c.q, half), k(c.k, half), v(c.v, half), o(c.value_count(), half), d_o(on_o, half);
    Stored d_q(c.key_count(), half), d_k(c.key_count(), half), d_v(c.value_count(), half);
    const Floats eta = floats(c.eta), log_decay = floats(c.log_decay), erase = floats(c.erase);
    const Floats initial = floats(c.initial_state), d_final = floats(on_final);
    const int64_t window = ssmn_memory_window(), windows = (c.call.steps + window - 1) / window;
    Floats states = poisoned(c.call.rows * std::max<int64_t>(0, windows - 1) * c.state_count());
    Floats final_state = poisoned(c.call.streams * c.state_count());
    Floats d_eta = poisoned(eta.size()), d_log_decay = poisoned(eta.size()), d_erase = poisoned(erase.size());
    Floats d_initial = poisoned(initial.size());
    const auto given = [](const auto& array) { return array.empty() ? nullptr : array.data(); };
    const float* erase_or_null = erases ? erase.data() : nullptr;
    const float* state_or_null = c.has_state ? initial.data() : nullptr;
    check(
        ssmn_memory(
            &c.call, q.data(), k.data(), v.data(), eta.data(), log_decay.data(), erase_or_null, given(c.mask),
            given(c.reset), given(c.bounds), state_or_null, o.data(), nullptr, states.data(), final_state.data(),
            threads) == SSMN_OK,
        c.name + ": forward");
    check(
        ssmn_memory_backward(
            &c.call, q.data(), k.data(), v.data(), eta.data(), log_decay.data(), erase_or_null, given(c.mask),
            given(c.reset), given(c.bounds), state_or_null, states.data(), d_o.data(), nullptr, d_final.data(),
            d_q.data(), d_k.data(), d_v.data(), d_eta.data(), d_log_decay.data(), erases ? d_erase.data() : nullptr,
            c.has_state ? d_initial.data() : nullptr, threads) == SSMN_OK,
        c.name + ": backward");
    return {
        {o.values(), final_state, d_q.values(), d_k.values(), d_v.values(), d_eta, d_log_decay, d_erase, d_initial}};
}

// The same by a call that writes and a call that reads. The gradients of what both are given add up.
Outcome compute_apart(const Case& c, const Numbers& on_o, const Numbers& on_final, int32_t threads) {
    const bool half = c.call.half != 0, erases = c.call.rule == SSMN_ERASE;
    Stored q(c.q, half), k(c.k, half), v(c.v, half), u(c.value_count(), half), o(c.value_count(), half),
        d_o(on_o, half);
    Stored d_q(c.key_count(), half), d_k(c.key_count(), half), d_k_read(c.key_count(), half);
    Stored d_v(c.value_count(), half), d_u(c.value_count(), half);
    const Floats eta = floats(c.eta), log_decay = floats(c.log_decay), erase = floats(c.erase);
    const Floats initial = floats(c.initial_state), d_final = floats(on_final);
    const int64_t window = ssmn_memory_window(), windows = (c.call.steps + window - 1) / window;
    const size_t stored = c.call.rows * std::max<int64_t>(0, windows - 1) * c.state_count();
    Floats states = poisoned(stored), read_states = poisoned(stored);
    Floats final_state = poisoned(c.call.streams * c.state_count());
    Floats d_eta = poisoned(eta.size()), d_erase = poisoned(erase.size());
    Floats d_log_decay = poisoned(eta.size()), d_log_decay_read = poisoned(eta.size());
    Floats d_initial = poisoned(initial.size()), d_initial_read = poisoned(initial.size());
    const auto given = [](const auto& array) { return array.empty() ? nullptr : array.data(); };
    const float* erase_or_null = erases ? erase.data() : nullptr;
    const float* state_or_null = c.has_state ? initial.data() : nullptr;
    ssmn_memory_call reading = c.call;
    reading.rule = SSMN_HEBBIAN;
    check(
        ssmn_memory(
            &c.call, nullptr, k.data(), v.data(), eta.data(), log_decay.data(), erase_or_null, given(c.mask),
            given(c.reset), given(c.bounds), state_or_null, nullptr, u.data(), states.data(), final_state.data(),
            threads) == SSMN_OK,
        c.name + ": write");
    check(
        ssmn_memory(
            &reading, q.data(), k.data(), u.data(), nullptr, log_decay.data(), nullptr, given(c.mask), given(c.reset),
            given(c.bounds), state_or_null, o.data(), nullptr, read_states.data(), nullptr, threads) == SSMN_OK,
        c.name + ": read");
    check(
        ssmn_memory_backward(
            &reading, q.data(), k.data(), u.data(), nullptr, log_decay.data(), nullptr, given(c.mask), given(c.reset),
            given(c.bounds), state_or_null, read_states.data(), d_o.data(), nullptr, nullptr, d_q.data(),
            d_k_read.data(), d_u.data(), nullptr, d_log_decay_read.data(), nullptr,
            c.has_state ? d_initial_read.data() : nullptr, threads) == SSMN_OK,
        c.name + ": read, backward");
    check(
        ssmn_memory_backward(
            &c.call, nullptr, k.data(), v.data(), eta.data(), log_decay.data(), erase_or_null, given(c.mask),
            given(c.reset), given(c.bounds), state_or_null, states.data(), nullptr, d_u.data(), d_final.data(), nullptr,
            d_k.data(), d_v.data(), d_eta.data(), d_log_decay.data(), erases ? d_erase.data() : nullptr,
            c.has_state ? d_initial.data() : nullptr, threads) == SSMN_OK,
        c.name + ": write, backward");
    const auto sum = [](Floats x, const Floats& y) {
        for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
        return x;
    };
    return {
        {o.values(), final_state, d_q.values(), sum(d_k.values(), d_k_read.values()), d_v.values(), d_eta,
         sum(d_log_decay, d_log_decay_read), d_erase, sum(d_initial, d_initial_read)}};
}

bool same(const Outcome& x, const Outcome& y) {
    for (size_t i = 0; i < x.arrays.size(); ++i) {
        const size_t bytes = x.arrays[i].size() * sizeof(float);
        if (bytes > 0 && std::memcmp(x.arrays[i].data(), y.arrays[i].data(), bytes) != 0) return false;
    }
    return true;
}

void run(Case c) {
    const char* const rules[] = {"hebbian", "delta", "erase"};
    c.name += std::string(", ") + rules[c.call.rule] + (c.call.half != 0 ? ", bfloat16" : "");
    std::mt19937 random(7);
    Numbers on_o = normal(c.value_count(), random);
    for (double& x : on_o) x = c.rounded(x);
    const Numbers on_final = normal(c.call.streams * c.state_count(), random);
    const double allowed = c.call.half != 0 ? 2e-2 : kTolerance;
    const Result expected = loop(c);
    const auto loss = [&] {
        const Result result = loop(c);
        return inner(result.o, on_o) + inner(result.final_state, on_final);
    };
    Numbers* const inputs[] = {&c.q, &c.k, &c.v, &c.eta, &c.log_decay, &c.erase, &c.initial_state};
    for (const auto& [way, name] : {std::pair{compute, c.name}, std::pair{compute_apart, c.name + ", apart"}}) {
        const Outcome got = way(c, on_o, on_final, 1);
        for (int32_t threads : {2, 3}) check(same(got, way(c, on_o, on_final, threads)), name + ": other threads");
        check_close(got.arrays[0], expected.o, name + ": o", allowed);
        check_close(got.arrays[1], expected.final_state, name + ": final_state", allowed);
        for (size_t i = 0; i < 7; ++i)
            if (!inputs[i]->empty())
                check_gradient(got.arrays[i + 2], *inputs[i], loss, random, name + ": " + kNames[i + 2], allowed);
    }
}

void run_rules(
    const std::string& name, ssmn_memory_call call, bool has_state, const std::function<void(Case&)>& change) {
    for (int32_t half : {0, 1})
        for (int32_t rule : {SSMN_HEBBIAN, SSMN_DELTA, SSMN_ERASE}) {
            call.half = half;
            call.rule = rule;
            Case c(name, call, has_state, 1);
            change(c);
            run(c);
        }
}

void check_all() {
    const int64_t C = ssmn_chunk_size(), P = ssmn_memory_window();
    const auto plain = [](Case&) {};
    for (int64_t steps : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{17}, C, C + 1, P + C + 5})
        run_rules("steps " + std::to_string(steps), {2, steps, 3, 5, 9, 2, 0, 0, 1}, steps % 2 == 0, plain);
    run_rules("one step with a mask", {3, 1, 2, 7, 19, 3, 0, 0, 1}, true, [](Case& c) { c.close_some(true, 3); });
    for (int64_t V : {63, 65, 130}) run_rules("V " + std::to_string(V), {1, C + 3, 1, 33, V, 1, 0, 0, 1}, true, plain);
    run_rules("wide keys", {1, C + 9, 1, 131, 16, 1, 0, 0, 1}, true, plain);
    for (bool by_head : {false, true})
        run_rules("mask", {2, 2 * C + 7, 3, 8, 5, 2, 0, 0, 1}, true, [by_head](Case& c) { c.close_some(by_head, 2); });
    run_rules("resets", {2, P + 70, 1, 6, 20, 2, 0, 0, 1}, true, [](Case& c) { c.reset_some(4, 50); });
    run_rules("many resets", {1, C + 20, 2, 6, 3, 1, 0, 0, 1}, false, [](Case& c) { c.reset_some(5, 3); });
    std::vector<int64_t> bounds{0};
    for (int64_t length : {int64_t{0}, int64_t{1}, C - 1, int64_t{7}, C + 1, int64_t{0}, int64_t{20}, int64_t{0}})
        bounds.push_back(bounds.back() + length);
    const int64_t streams = static_cast<int64_t>(bounds.size()) - 1;
    for (bool has_state : {false, true})
        run_rules("packed", {1, bounds.back(), 2, 9, 5, streams, 0, 0, 1}, has_state, [&bounds](Case& c) {
            c.bounds = bounds;
            c.close_some(false, 6);
            c.reset_some(8, 30);
        });
    run_rules("no rows", {0, 12, 2, 4, 3, 0, 0, 0, 1}, false, plain);
}

}  // namespace

int main() {
    return on_every_path("memory", check_all);
}

// The window attention against loops over its steps in double, which keep the ring as the manual describes it.
#include <cstring>
#include <sstream>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

using Bytes = std::vector<uint8_t>;
using Positions = std::vector<int64_t>;

struct Case {
    std::string name;
    ssmn_window_sizes sizes;
    bool bfloat16 = false, has_ring = false, has_mask = false, has_reset = false, has_sinks = false;
    bool keeps_final = true;
    Positions cu_seqlens;  // empty: none
    double rope_theta = 0.0;
    float scale = 0.3f;
};

float rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// An array of q, k, v or o in the type of a case.
struct Typed {
    Floats wide;
    std::vector<uint16_t> half;

    Typed(const Numbers& values, bool bfloat16) : wide(values.begin(), values.end()) {
        if (!bfloat16) return;
        for (float value : wide) {
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            half.push_back(static_cast<uint16_t>(bits >> 16));
        }
    }
    static Typed poison(size_t size, bool bfloat16) {
        return Typed(Numbers(size, std::numeric_limits<double>::quiet_NaN()), bfloat16);
    }
    void* data() { return half.empty() ? static_cast<void*>(wide.data()) : half.data(); }
    Floats values() const {
        if (half.empty()) return wide;
        Floats all(half.size());
        for (size_t i = 0; i < half.size(); ++i) {
            const uint32_t bits = static_cast<uint32_t>(half[i]) << 16;
            std::memcpy(&all[i], &bits, sizeof bits);
        }
        return all;
    }
};

struct Inputs {
    Numbers q, k, v, ring_keys, ring_values, sinks, d_o, d_final_keys, d_final_values;
    Positions position;
    Bytes mask, reset;

    explicit Inputs(const Case& c) {
        std::mt19937 random(3);
        const ssmn_window_sizes& s = c.sizes;
        const size_t steps = s.rows * s.steps, ring = s.streams * (s.window - 1) * s.key_heads * s.width;
        q = normal(steps * s.query_heads * s.width, random);
        k = normal(steps * s.key_heads * s.width, random);
        v = normal(k.size(), random);
        d_o = normal(q.size(), random);
        for (Numbers* values : {&q, &k, &v, &d_o})
            for (double& value : *values)
                if (c.bfloat16) value = rounded(static_cast<float>(value));
        ring_keys = normal(ring, random);
        ring_values = normal(ring, random);
        d_final_keys = normal(ring, random);
        d_final_values = normal(ring, random);
        sinks = normal(s.query_heads, random);
        std::uniform_int_distribution<int> percent(0, 99);
        for (int64_t n = 0; n < s.streams; ++n)
            position.push_back(!c.has_ring ? 0 : n % 2 == 0 ? s.window + 3 : std::min<int64_t>(s.window - 1, 2));
        for (size_t t = 0; t < steps; ++t) mask.push_back(percent(random) < 70);
        for (size_t t = 0; t < steps; ++t) reset.push_back(percent(random) < 4);
    }
};

struct Result {
    Numbers o, lse, final_keys, final_values, d_q, d_k, d_v, d_ring_keys, d_ring_values, d_sinks;
    Positions final_position;
};

// x [D] turned by its position's angles, or back.
void turn(double* x, int64_t width, int64_t position, double theta, bool back) {
    if (theta == 0.0) return;
    for (int64_t i = 0; i < width / 2; ++i) {
        const double angle = static_cast<double>(position) * std::pow(theta, -2.0 * i / width) * (back ? -1 : 1);
        const double first = x[i], second = x[i + width / 2];
        x[i] = first * std::cos(angle) - second * std::sin(angle);
        x[i + width / 2] = second * std::cos(angle) + first * std::sin(angle);
    }
}

// A key and value of all heads, where they came from, and their gradients.
struct Entry {
    Numbers key, value, d_key, d_value;
    int64_t step = -1, slot = -1, position = 0;
};

Result loop(const Case& c, const Inputs& in) {
    const ssmn_window_sizes& s = c.sizes;
    const int64_t T = s.steps, Hq = s.query_heads, Hkv = s.key_heads, D = s.width, slots = s.window - 1;
    const int64_t row = Hkv * D;
    Result r;
    r.o.resize(in.q.size());
    r.lse.assign(s.rows * T * Hq, -std::numeric_limits<double>::infinity());
    r.final_keys.resize(in.ring_keys.size());
    r.final_values.resize(in.ring_keys.size());
    r.d_q.resize(in.q.size());
    r.d_k.resize(in.k.size());
    r.d_v.resize(in.v.size());
    r.d_ring_keys.resize(in.ring_keys.size());
    r.d_ring_values.resize(in.ring_keys.size());
    r.d_sinks.resize(Hq);
    for (int64_t n = 0; n < s.streams; ++n) {
        const int64_t base = c.cu_seqlens.empty() ? n * T : 0;
        const int64_t from = c.cu_seqlens.empty() ? 0 : c.cu_seqlens[n];
        const int64_t to = c.cu_seqlens.empty() ? T : c.cu_seqlens[n + 1];
        std::vector<Entry> entries;
        std::vector<int64_t> ring(slots, -1);
        int64_t position = c.has_ring ? in.position[n] : 0;
        for (int64_t slot = 0; c.has_ring && slot < std::min(slots, position); ++slot) {
            Entry e;
            const auto at = (n * slots + slot) * row;
            e.key.assign(in.ring_keys.begin() + at, in.ring_keys.begin() + at + row);
            e.value.assign(in.ring_values.begin() + at, in.ring_values.begin() + at + row);
            e.slot = n * slots + slot;
            ring[slot] = static_cast<int64_t>(entries.size());
            entries.push_back(e);
        }
        for (int64_t t = base + from; t < base + to; ++t) {
            if (c.has_reset && in.reset[t]) {
                position = 0;
                ring.assign(slots, -1);
            }
            if (c.has_mask && !in.mask[t]) continue;
            Entry own;
            own.key.assign(in.k.begin() + t * row, in.k.begin() + (t + 1) * row);
            own.value.assign(in.v.begin() + t * row, in.v.begin() + (t + 1) * row);
            own.step = t;
            own.position = position;
            for (int64_t h = 0; h < Hkv; ++h) turn(&own.key[h * D], D, position, c.rope_theta, false);
            std::vector<int64_t> seen;
            for (int64_t id : ring)
                if (id >= 0) seen.push_back(id);
            seen.push_back(static_cast<int64_t>(entries.size()));
            entries.push_back(own);
            for (Entry& e : entries) {
                e.d_key.resize(row);
                e.d_value.resize(row);
            }
            for (int64_t h = 0; h < Hq; ++h) {
                const int64_t query = (t * Hq + h) * D, head = h / (Hq / Hkv) * D;
                Numbers q(in.q.begin() + query, in.q.begin() + query + D), d_q(D), weights;
                turn(q.data(), D, position, c.rope_theta, false);
                double denominator = c.has_sinks ? std::exp(in.sinks[h]) : 0.0;
                for (int64_t id : seen) {
                    double score = 0.0;
                    for (int64_t d = 0; d < D; ++d) score += q[d] * entries[id].key[head + d];
                    weights.push_back(std::exp(static_cast<double>(c.scale) * score));
                    denominator += weights.back();
                }
                double through = 0.0;
                for (size_t j = 0; j < seen.size(); ++j)
                    for (int64_t d = 0; d < D; ++d) {
                        const double part = weights[j] / denominator * entries[seen[j]].value[head + d];
                        r.o[query + d] += part;
                        through += part * in.d_o[query + d];
                    }
                r.lse[t * Hq + h] = std::log(denominator);
                r.d_sinks[h] -= std::exp(in.sinks[h]) / denominator * through;
                for (size_t j = 0; j < seen.size(); ++j) {
                    Entry& e = entries[seen[j]];
                    double d_weight = 0.0;
                    for (int64_t d = 0; d < D; ++d) d_weight += in.d_o[query + d] * e.value[head + d];
                    const double weight = weights[j] / denominator;
                    const double d_score = c.scale * weight * (d_weight - through);
                    for (int64_t d = 0; d < D; ++d) {
                        e.d_value[head + d] += weight * in.d_o[query + d];
                        e.d_key[head + d] += d_score * q[d];
                        d_q[d] += d_score * e.key[head + d];
                    }
                }
                turn(d_q.data(), D, position, c.rope_theta, true);
                std::copy(d_q.begin(), d_q.end(), r.d_q.begin() + query);
            }
            if (slots > 0) ring[position % slots] = static_cast<int64_t>(entries.size()) - 1;
            ++position;
        }
        r.final_position.push_back(position);
        for (int64_t slot = 0; slot < slots; ++slot) {
            if (ring[slot] < 0) continue;
            Entry& e = entries[ring[slot]];
            e.d_key.resize(row);
            e.d_value.resize(row);
            for (int64_t d = 0; d < row; ++d) {
                const int64_t at = (n * slots + slot) * row + d;
                r.final_keys[at] = e.key[d];
                r.final_values[at] = e.value[d];
                if (c.keeps_final) e.d_key[d] += in.d_final_keys[at];
                if (c.keeps_final) e.d_value[d] += in.d_final_values[at];
            }
        }
        for (Entry& e : entries) {
            e.d_key.resize(row);
            e.d_value.resize(row);
            for (int64_t h = 0; e.step >= 0 && h < Hkv; ++h) turn(&e.d_key[h * D], D, e.position, c.rope_theta, true);
            Numbers& d_k = e.step >= 0 ? r.d_k : r.d_ring_keys;
            Numbers& d_v = e.step >= 0 ? r.d_v : r.d_ring_values;
            const int64_t at = (e.step >= 0 ? e.step : e.slot) * row;
            std::copy(e.d_key.begin(), e.d_key.end(), d_k.begin() + at);
            std::copy(e.d_value.begin(), e.d_value.end(), d_v.begin() + at);
        }
    }
    return r;
}

void check_near(const Floats& actual, const Numbers& expected, double tolerance, const std::string& what) {
    double worst = actual.size() == expected.size() ? 0.0 : std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < actual.size() && i < expected.size(); ++i) {
        if (std::isinf(expected[i]) && actual[i] == expected[i]) continue;
        const double difference = std::abs(actual[i] - expected[i]);
        if (!(difference <= worst)) worst = difference;
    }
    double most = 1.0;
    for (double value : expected)
        if (!std::isinf(value)) most = std::max(most, std::abs(value));
    check(worst <= tolerance * most, what + ": differs by " + std::to_string(worst) + " of " + std::to_string(most));
}

struct Outputs {
    Floats o, lse, final_keys, final_values, d_q, d_k, d_v, d_ring_keys, d_ring_values, d_sinks;
    Positions final_position;
};

Outputs run(const Case& c, const Inputs& in, int32_t threads) {
    const int32_t type = c.bfloat16 ? SSMN_BFLOAT16 : SSMN_FLOAT32;
    Typed q(in.q, c.bfloat16), k(in.k, c.bfloat16), v(in.v, c.bfloat16), d_o(in.d_o, c.bfloat16);
    // Slots that are not filled are not read.
    Floats ring_keys = floats(in.ring_keys), ring_values = floats(in.ring_values), sinks = floats(in.sinks);
    const int64_t slots = c.sizes.window - 1, row = c.sizes.key_heads * c.sizes.width;
    for (int64_t n = 0; n < c.sizes.streams; ++n)
        for (int64_t at = std::min(in.position[n], slots) * row; at < slots * row; ++at)
            ring_keys[n * slots * row + at] = ring_values[n * slots * row + at] =
                std::numeric_limits<float>::quiet_NaN();
    const float* keys_or_null = c.has_ring ? ring_keys.data() : nullptr;
    const float* values_or_null = c.has_ring ? ring_values.data() : nullptr;
    const int64_t* position = c.has_ring ? in.position.data() : nullptr;
    const uint8_t* mask = c.has_mask ? in.mask.data() : nullptr;
    const uint8_t* reset = c.has_reset ? in.reset.data() : nullptr;
    const int64_t* cu_seqlens = c.cu_seqlens.empty() ? nullptr : c.cu_seqlens.data();
    const float* sinks_or_null = c.has_sinks ? sinks.data() : nullptr;

    Outputs out;
    Typed o = Typed::poison(in.q.size(), c.bfloat16);
    out.lse = poisoned(c.sizes.rows * c.sizes.steps * c.sizes.query_heads);
    if (c.keeps_final) {
        out.final_keys = poisoned(in.ring_keys.size());
        out.final_values = poisoned(in.ring_keys.size());
        out.final_position.assign(c.sizes.streams, -1);
    }
    check(
        ssmn_window_attention(
            &c.sizes, type, q.data(), k.data(), v.data(), keys_or_null, values_or_null, position, mask, reset,
            cu_seqlens, sinks_or_null, c.scale, c.rope_theta, o.data(), out.lse.data(),
            c.keeps_final ? out.final_keys.data() : nullptr, c.keeps_final ? out.final_values.data() : nullptr,
            c.keeps_final ? out.final_position.data() : nullptr, threads) == SSMN_OK,
        c.name + ": forward");
    out.o = o.values();

    Typed d_q = Typed::poison(in.q.size(), c.bfloat16), d_k = Typed::poison(in.k.size(), c.bfloat16);
    Typed d_v = Typed::poison(in.v.size(), c.bfloat16);
    if (c.has_ring) {
        out.d_ring_keys = poisoned(in.ring_keys.size());
        out.d_ring_values = poisoned(in.ring_keys.size());
    }
    if (c.has_sinks) out.d_sinks = poisoned(in.sinks.size());
    const Floats d_final_keys = floats(in.d_final_keys), d_final_values = floats(in.d_final_values);
    check(
        ssmn_window_attention_backward(
            &c.sizes, type, q.data(), k.data(), v.data(), keys_or_null, values_or_null, position, mask, reset,
            cu_seqlens, sinks_or_null, c.scale, c.rope_theta, o.data(), out.lse.data(), d_o.data(),
            c.keeps_final ? d_final_keys.data() : nullptr, c.keeps_final ? d_final_values.data() : nullptr, d_q.data(),
            d_k.data(), d_v.data(), c.has_ring ? out.d_ring_keys.data() : nullptr,
            c.has_ring ? out.d_ring_values.data() : nullptr, c.has_sinks ? out.d_sinks.data() : nullptr,
            threads) == SSMN_OK,
        c.name + ": backward");
    out.d_q = d_q.values();
    out.d_k = d_k.values();
    out.d_v = d_v.values();
    return out;
}

void check_case(const Case& c) {
    const Inputs in(c);
    const Result expected = loop(c, in);
    const Outputs actual = run(c, in, 1);
    // bfloat16 has 8 bits, and the weights and the gradients of the scores are rounded to it too.
    const double tolerance = c.bfloat16 ? 2e-2 : 1e-5;
    check_near(actual.o, expected.o, tolerance, c.name + ": o");
    check_near(actual.lse, expected.lse, tolerance, c.name + ": lse");
    if (c.keeps_final) {
        check_near(actual.final_keys, expected.final_keys, 1e-5, c.name + ": final_keys");
        check_near(actual.final_values, expected.final_values, 1e-5, c.name + ": final_values");
        check(actual.final_position == expected.final_position, c.name + ": final_position");
    }
    check_near(actual.d_q, expected.d_q, tolerance, c.name + ": d_q");
    check_near(actual.d_k, expected.d_k, tolerance, c.name + ": d_k");
    check_near(actual.d_v, expected.d_v, tolerance, c.name + ": d_v");
    if (c.has_ring) {
        check_near(actual.d_ring_keys, expected.d_ring_keys, tolerance, c.name + ": d_ring_keys");
        check_near(actual.d_ring_values, expected.d_ring_values, tolerance, c.name + ": d_ring_values");
    }
    if (c.has_sinks) check_near(actual.d_sinks, expected.d_sinks, tolerance, c.name + ": d_sinks");

    const Outputs again = run(c, in, 3);
    const auto same = [&](const Floats& one, const Floats& other, const char* what) {
        check(
            one.size() == other.size() &&
                (one.empty() || std::memcmp(one.data(), other.data(), sizeof(float) * one.size()) == 0),
            c.name + ": " + what + " depends on the threads");
    };
    same(actual.o, again.o, "o");
    same(actual.d_q, again.d_q, "d_q");
    same(actual.d_k, again.d_k, "d_k");
    same(actual.d_v, again.d_v, "d_v");
    same(actual.final_keys, again.final_keys, "final_keys");
    same(actual.d_ring_keys, again.d_ring_keys, "d_ring_keys");
    same(actual.d_sinks, again.d_sinks, "d_sinks");
}

std::string numbers(const ssmn_window_sizes& s) {
    std::ostringstream text;
    text << "B " << s.rows << " T " << s.steps << " heads " << s.query_heads << "/" << s.key_heads << " D " << s.width
         << " N " << s.streams << " W " << s.window;
    return text.str();
}

// Every feature by itself and all together, and neither ring nor final state.
void check_features(
    int64_t rows, int64_t steps, int64_t query_heads, int64_t key_heads, int64_t width, int64_t window) {
    for (bool bfloat16 : {false, true})
        for (int feature = 0; feature < 7; ++feature) {
            Case c;
            const bool all = feature == 5;
            c.sizes = {rows, steps, query_heads, key_heads, width, rows, window};
            c.bfloat16 = bfloat16;
            c.keeps_final = feature != 0;
            c.has_ring = feature == 1 || feature == 6 || all;
            c.has_mask = feature == 2 || all;
            c.has_reset = feature == 3 || all;
            c.has_sinks = feature == 4 || all;
            c.rope_theta = width % 2 == 0 && feature != 0 ? 100.0 : 0.0;
            if (feature == 6 || (all && rows == 1)) {
                const int64_t middle = steps / 3;
                c.cu_seqlens = {0, 0, middle, middle + (steps > 0), steps, steps};
                c.sizes.rows = 1;
                c.sizes.streams = 5;
            }
            const char* names[] = {"bare", "ring", "mask", "reset", "sinks", "all", "packed"};
            c.name = std::string(names[feature]) + (bfloat16 ? " bfloat16 " : " float32 ") + numbers(c.sizes);
            check_case(c);
        }
}

void check_all() {
    for (int64_t steps : {0, 1, 4, 5, 33, 70})
        for (int64_t window : {1, 2, 5, 64}) check_features(2, steps, 4, 2, 12, window);
    check_features(2, 3, 2, 2, 5, 7);
    check_features(3, 45, 6, 2, 5, 31);
    check_features(1, 129, 3, 1, 80, 65);
    check_features(1, 150, 2, 2, 36, 520);
    check_features(0, 9, 2, 1, 8, 4);
    check_features(1, 700, 2, 1, 8, 40);    // several slabs
    check_features(1, 700, 1, 1, 14, 600);  // a window longer than a slab
}

}  // namespace

int main() {
    return on_every_path("window", check_all);
}

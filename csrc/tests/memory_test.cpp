#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

struct Case {
    std::string name;
    ssmn_memory_sizes sizes;
    bool erases;
    Table begin, end;
    Numbers q, k, v, write, erase, log_keep, initial_state;

    Case(const std::string& name, const ssmn_memory_sizes& sizes, bool erases, Table begin, Table end, uint32_t seed)
        : name(name), sizes(sizes), erases(erases), begin(std::move(begin)), end(std::move(end)) {
        std::mt19937 random(seed);
        q = normal(key_count(), random);
        k = normal(key_count(), random);
        for (double& x : k) x = static_cast<float>(x / std::sqrt(static_cast<double>(sizes.key_width)));
        v = normal(value_count(), random);
        write = normal(scalar_count(), random);
        if (erases) erase = normal(scalar_count(), random);
        for (double& x : erase) x = static_cast<float>(1.0 / (1.0 + std::exp(x)));
        log_keep = normal(scalar_count(), random);
        for (double& x : log_keep) x = static_cast<float>(-0.1 * std::exp(x));
        initial_state = normal(sizes.streams * state_count(), random);
    }

    size_t scalar_count() const { return sizes.rows * sizes.steps * sizes.heads; }
    size_t key_count() const { return scalar_count() * sizes.key_width; }
    size_t value_count() const { return scalar_count() * sizes.value_width; }
    size_t state_count() const { return sizes.heads * sizes.key_width * sizes.value_width; }
    size_t chunks() const { return (sizes.steps + ssmn_chunk_size() - 1) / ssmn_chunk_size(); }
};

struct Result {
    Numbers o, chunk_states, final_state;
};

// The definition, step by step.
Result loop(const Case& c) {
    const int64_t T = c.sizes.steps, H = c.sizes.heads, K = c.sizes.key_width, V = c.sizes.value_width;
    Result result{Numbers(c.value_count()), Numbers(c.sizes.rows * c.chunks() * c.state_count()), c.initial_state};
    for (int64_t b = 0; b < c.sizes.rows; ++b)
        for (int64_t h = 0; h < H; ++h) {
            Numbers state(K * V);
            for (int64_t t = 0; t < T; ++t) {
                const int64_t at = (b * T + t) * H + h;
                if (t % ssmn_chunk_size() == 0) {
                    const int64_t chunk = b * c.chunks() + t / ssmn_chunk_size();
                    std::copy(state.begin(), state.end(), &result.chunk_states[(chunk * H + h) * K * V]);
                }
                const int32_t source = c.begin[b * T + t];
                for (int64_t i = 0; i < K * V && source != SSMN_GO_ON; ++i)
                    state[i] = source >= 0 ? c.initial_state[(source * H + h) * K * V + i] : 0.0;
                for (int64_t j = 0; j < V; ++j) {
                    double recalled = 0.0;
                    for (int64_t i = 0; i < K; ++i) recalled += c.k[at * K + i] * state[i * V + j];
                    if (!c.erases) recalled = 0.0;
                    const double erased = c.erases ? c.erase[at] * recalled : 0.0, keep = std::exp(c.log_keep[at]);
                    double& o = result.o[at * V + j];
                    for (int64_t i = 0; i < K; ++i) {
                        double& s = state[i * V + j];
                        const double key = c.k[at * K + i];
                        s = keep * (s - erased * key) + c.write[at] * key * c.v[at * V + j];
                        o += s * c.q[at * K + i];
                    }
                }
                const int32_t stream = c.end[b * T + t];
                if (stream >= 0) std::copy(state.begin(), state.end(), &result.final_state[(stream * H + h) * K * V]);
            }
        }
    return result;
}

void run(Case c, int32_t threads) {
    const std::string name = c.name + (c.erases ? ", erase" : "") + ", " + std::to_string(threads) + " threads";
    const Floats q = floats(c.q), k = floats(c.k), v = floats(c.v), write = floats(c.write), erase = floats(c.erase);
    const Floats log_keep = floats(c.log_keep), initial = floats(c.initial_state);
    const float* erase_or_null = c.erases ? erase.data() : nullptr;
    const Result expected = loop(c);

    Floats u = poisoned(v.size()), chunk_states = poisoned(expected.chunk_states.size());
    Floats final_state = poisoned(initial.size()), o = poisoned(v.size());
    check(
        ssmn_memory_write(
            &c.sizes, k.data(), v.data(), write.data(), erase_or_null, log_keep.data(), c.begin.data(), c.end.data(),
            initial.data(), u.data(), chunk_states.data(), final_state.data(), threads) == SSMN_OK,
        name + ": write");
    check(
        ssmn_memory_read(
            &c.sizes, q.data(), k.data(), u.data(), log_keep.data(), c.begin.data(), initial.data(),
            chunk_states.data(), o.data(), threads) == SSMN_OK,
        name + ": read");
    check_close(o, expected.o, name + ": o");
    check_close(chunk_states, expected.chunk_states, name + ": chunk_states");
    check_close(final_state, expected.final_state, name + ": final_state");

    std::mt19937 random(7);
    const Numbers on_o = normal(o.size(), random), on_chunks = normal(chunk_states.size(), random);
    const Numbers on_final = normal(final_state.size(), random);
    const auto loss = [&] {
        const Result result = loop(c);
        return inner(result.o, on_o) + inner(result.chunk_states, on_chunks) + inner(result.final_state, on_final);
    };
    Floats d_q = poisoned(q.size()), d_k = poisoned(k.size()), d_u = poisoned(u.size());
    Floats d_log_keep = poisoned(log_keep.size()), d_initial = poisoned(initial.size());
    Floats d_chunks = poisoned(chunk_states.size());
    ssmn_memory_read_backward(
        &c.sizes, q.data(), k.data(), u.data(), log_keep.data(), c.begin.data(), initial.data(), chunk_states.data(),
        floats(on_o).data(), d_q.data(), d_k.data(), d_u.data(), d_log_keep.data(), d_initial.data(), d_chunks.data(),
        threads);
    for (size_t i = 0; i < d_chunks.size(); ++i) d_chunks[i] += static_cast<float>(on_chunks[i]);
    Floats d_k2 = poisoned(k.size()), d_v = poisoned(v.size()), d_write = poisoned(write.size());
    Floats d_erase = poisoned(erase.size()), d_log_keep2 = poisoned(log_keep.size());
    Floats d_initial2 = poisoned(initial.size());
    ssmn_memory_write_backward(
        &c.sizes, k.data(), v.data(), write.data(), erase_or_null, log_keep.data(), c.begin.data(), c.end.data(),
        initial.data(), u.data(), chunk_states.data(), d_u.data(), d_chunks.data(), floats(on_final).data(),
        d_k2.data(), d_v.data(), d_write.data(), c.erases ? d_erase.data() : nullptr, d_log_keep2.data(),
        d_initial2.data(), threads);
    const auto add = [](Floats& to, const Floats& from) {
        for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    };
    add(d_k, d_k2);
    add(d_log_keep, d_log_keep2);
    add(d_initial, d_initial2);
    check_gradient(d_q, c.q, loss, random, name + ": d_q");
    check_gradient(d_k, c.k, loss, random, name + ": d_k");
    check_gradient(d_v, c.v, loss, random, name + ": d_v");
    check_gradient(d_write, c.write, loss, random, name + ": d_write");
    if (c.erases) check_gradient(d_erase, c.erase, loss, random, name + ": d_erase");
    check_gradient(d_log_keep, c.log_keep, loss, random, name + ": d_log_keep");
    check_gradient(d_initial, c.initial_state, loss, random, name + ": d_initial_state");
}

void run_all(const std::string& name, const ssmn_memory_sizes& sizes, const Table& begin, const Table& end) {
    for (bool erases : {false, true})
        for (int32_t threads : {1, 3}) run(Case(name, sizes, erases, begin, end, 1), threads);
}

}  // namespace

int main() {
    const int64_t C = ssmn_chunk_size();
    for (int64_t steps : {int64_t{0}, int64_t{1}, int64_t{17}, C, C + 1, 2 * C + 5}) {
        Table begin(2 * steps, SSMN_GO_ON), end(2 * steps, SSMN_GO_ON);
        for (int32_t row = 0; row < 2 && steps > 0; ++row) begin[row * steps] = end[(row + 1) * steps - 1] = row;
        run_all("steps " + std::to_string(steps), {2, steps, 3, 5, 9, 2}, begin, end);
    }
    {
        Table begin, end;
        int32_t stream = 0;
        for (int64_t length : {int64_t{0}, int64_t{1}, C - 1, int64_t{7}, C + 1, int64_t{0}, int64_t{20}}) {
            const size_t first = begin.size();
            begin.resize(first + length, SSMN_GO_ON);
            end.resize(first + length, SSMN_GO_ON);
            if (length > 0) begin[first] = end.back() = stream;
            ++stream;
        }
        run_all("packed", {1, static_cast<int64_t>(begin.size()), 2, 9, 5, stream}, begin, end);
    }
    {
        const int64_t steps = C + 11;
        Table begin(2 * steps, SSMN_GO_ON), end(2 * steps, SSMN_GO_ON);
        begin[5] = begin[6] = begin[C] = begin[steps + 9] = SSMN_BEGIN_FRESH;
        begin[steps + 30] = 1;
        end[3] = 2;
        end[4] = 0;
        end[steps + 40] = 3;
        run_all("resets and early ends", {2, steps, 2, 8, 3, 4}, begin, end);
    }
    run_all("no rows", {0, 12, 2, 4, 3, 2}, {}, {});
    run_all("no streams", {1, 12, 2, 4, 3, 0}, Table(12, SSMN_GO_ON), Table(12, SSMN_GO_ON));
    return report("memory");
}

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>

#include "exponential.h"
#include "matrix.h"
#include "parallel.h"
#include "path.h"
#include "ssmn.h"

// Queries are worked on in blocks against blocks of keys, with the softmax kept as a running maximum and a running
// denominator, so no row of scores is ever stored whole. The backward pass computes the scores again and takes the
// weights from the stored log-sum-exp.

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kQueries = 32;
constexpr int64_t kKeys = 64;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct AttentionArguments {
    const ssmn_attention_sizes& sizes;
    const float *q, *k, *v;
    const int32_t *lo, *hi;
    const float* sinks;
    float scale;

    int64_t query_stride() const { return sizes.query_heads * sizes.width; }
    int64_t key_stride() const { return sizes.key_heads * sizes.width; }
    int64_t query_scalar(int64_t row, int64_t t, int64_t head) const {
        return (row * sizes.steps + t) * sizes.query_heads + head;
    }
    int64_t query(int64_t row, int64_t t, int64_t head) const { return query_scalar(row, t, head) * sizes.width; }
    int64_t key(int64_t row, int64_t j, int64_t key_head) const {
        return ((row * sizes.keys + j) * sizes.key_heads + key_head) * sizes.width;
    }
    int64_t key_head(int64_t head) const { return head / (sizes.query_heads / sizes.key_heads); }
};

// Up to kQueries consecutive queries of one row and the keys that any of them sees.
struct QueryBlock {
    int64_t first, count;
    const int32_t *lo, *hi;
    int64_t first_key = std::numeric_limits<int64_t>::max();
    int64_t last_key = 0;

    QueryBlock(const AttentionArguments& in, int64_t row, int64_t block)
        : first(block * kQueries),
          count(std::min(kQueries, in.sizes.steps - first)),
          lo(in.lo + row * in.sizes.steps + first),
          hi(in.hi + row * in.sizes.steps + first) {
        for (int64_t i = 0; i < count; ++i) {
            if (lo[i] >= hi[i]) continue;
            first_key = std::min<int64_t>(first_key, lo[i]);
            last_key = std::max<int64_t>(last_key, hi[i]);
        }
    }
};

// The columns of a key block that one query sees: [from, to), empty if from >= to.
struct Span {
    int64_t from, to;
    Span(const QueryBlock& block, int64_t query, int64_t first_key, int64_t count)
        : from(std::max<int64_t>(block.lo[query] - first_key, 0)),
          to(std::min<int64_t>(block.hi[query] - first_key, count)) {}
    bool empty() const { return from >= to; }
};

// scores [count, kKeys] = queries times the keys [first_key, first_key + keys); `transposed` is scratch [D, kKeys].
void score(
    const AttentionArguments& in,
    const QueryBlock& block,
    const float* queries,
    const float* keys,
    int64_t count,
    float* transposed,
    float* scores) {
    transpose(count, in.sizes.width, keys, in.key_stride(), transposed, kKeys);
    product(block.count, count, in.sizes.width, {queries, in.sizes.width}, transposed, kKeys, scores, kKeys);
}

int64_t forward_workspace(int64_t width) {
    return width * (2 * kQueries + kKeys) + kQueries * kKeys;
}

void attend_block(
    const AttentionArguments& in, int64_t row, int64_t head, int64_t number, float* o, float* lse, float* workspace) {
    const int64_t D = in.sizes.width;
    float* queries = workspace;
    float* sums = queries + kQueries * D;
    float* transposed = sums + kQueries * D;
    float* scores = transposed + kKeys * D;
    float most[kQueries], denominator[kQueries];
    const QueryBlock block(in, row, number);
    for (int64_t i = 0; i < block.count; ++i) {
        std::copy_n(in.q + in.query(row, block.first + i, head), D, queries + i * D);
        most[i] = in.sinks == nullptr ? kNothing : in.sinks[head];
        denominator[i] = in.sinks == nullptr ? 0.0f : 1.0f;
    }
    scale(block.count * D, in.scale, queries);
    std::fill_n(sums, block.count * D, 0.0f);

    for (int64_t j = block.first_key; j < block.last_key; j += kKeys) {
        const int64_t count = std::min(kKeys, block.last_key - j);
        const int64_t at = in.key(row, j, in.key_head(head));
        score(in, block, queries, in.k + at, count, transposed, scores);
        for (int64_t i = 0; i < block.count; ++i) {
            float* line = scores + i * kKeys;
            const Span span(block, i, j, count);
            if (span.empty()) {
                std::fill_n(line, count, 0.0f);
                continue;
            }
            const float before = most[i];
            most[i] = largest(span.to - span.from, line + span.from, before);
            const float keep = exp_nonpositive(before - most[i]);
            std::fill(line, line + span.from, 0.0f);
            for (int64_t s = span.from; s < span.to; ++s) line[s] = exp_nonpositive(line[s] - most[i]);
            std::fill(line + span.to, line + count, 0.0f);
            denominator[i] = denominator[i] * keep + sum(span.to - span.from, line + span.from);
            scale(D, keep, sums + i * D);
        }
        add_product(block.count, D, count, {scores, kKeys}, in.v + at, in.key_stride(), sums, D);
    }
    for (int64_t i = 0; i < block.count; ++i) {
        const float inverse = denominator[i] > 0.0f ? 1.0f / denominator[i] : 0.0f;
        float* out = o + in.query(row, block.first + i, head);
        for (int64_t d = 0; d < D; ++d) out[d] = sums[i * D + d] * inverse;
        lse[in.query_scalar(row, block.first + i, head)] = most[i] + std::log(denominator[i]);
    }
}

struct AttentionGradients {
    float *q, *k, *v;
    float* sinks;  // [B, Hq], one row each, or null
};

int64_t backward_workspace(int64_t width) {
    return width * (3 * kQueries + kKeys) + 2 * kQueries * kKeys;
}

// All queries of one row that share a key head: they add up in one place, always in the same order.
void attend_backward(
    const AttentionArguments& in,
    int64_t row,
    int64_t key_head,
    const float* o,
    const float* lse,
    const float* d_o_in,
    const float* d_lse,
    const AttentionGradients& out,
    float* workspace) {
    const int64_t D = in.sizes.width, group = in.sizes.query_heads / in.sizes.key_heads;
    float* queries = workspace;
    float* d_queries = queries + kQueries * D;
    float* d_o = d_queries + kQueries * D;
    float* transposed = d_o + kQueries * D;
    float* weights = transposed + kKeys * D;
    float* d_scores = weights + kQueries * kKeys;
    for (int64_t j = 0; j < in.sizes.keys; ++j) {
        std::fill_n(out.k + in.key(row, j, key_head), D, 0.0f);
        std::fill_n(out.v + in.key(row, j, key_head), D, 0.0f);
    }
    const int64_t blocks = (in.sizes.steps + kQueries - 1) / kQueries;
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
        double d_sink = 0.0;
        for (int64_t number = 0; number < blocks; ++number) {
            const QueryBlock block(in, row, number);
            float through[kQueries], total[kQueries];
            for (int64_t i = 0; i < block.count; ++i) {
                const int64_t at = in.query(row, block.first + i, head);
                const int64_t scalar = in.query_scalar(row, block.first + i, head);
                std::copy_n(in.q + at, D, queries + i * D);
                std::copy_n(d_o_in + at, D, d_o + i * D);
                total[i] = lse[scalar];
                through[i] = dot(D, d_o_in + at, o + at) - (d_lse == nullptr ? 0.0f : d_lse[scalar]);
                if (in.sinks != nullptr)
                    d_sink -= static_cast<double>(std::exp(in.sinks[head] - total[i])) * through[i];
            }
            scale(block.count * D, in.scale, queries);
            std::fill_n(d_queries, block.count * D, 0.0f);
            for (int64_t j = block.first_key; j < block.last_key; j += kKeys) {
                const int64_t count = std::min(kKeys, block.last_key - j);
                const int64_t at = in.key(row, j, key_head);
                score(in, block, queries, in.k + at, count, transposed, weights);
                transpose(count, D, in.v + at, in.key_stride(), transposed, kKeys);
                product(block.count, count, D, {d_o, D}, transposed, kKeys, d_scores, kKeys);
                for (int64_t i = 0; i < block.count; ++i) {
                    float* line = weights + i * kKeys;
                    float* d_line = d_scores + i * kKeys;
                    const Span span(block, i, j, count);
                    const int64_t from = span.empty() ? count : span.from, to = span.empty() ? count : span.to;
                    std::fill(line, line + from, 0.0f);
                    std::fill(d_line, d_line + from, 0.0f);
                    for (int64_t s = from; s < to; ++s) {
                        line[s] = exp_nonpositive(line[s] - total[i]);
                        d_line[s] = line[s] * (d_line[s] - through[i]);
                    }
                    std::fill(line + to, line + count, 0.0f);
                    std::fill(d_line + to, d_line + count, 0.0f);
                }
                add_product(
                    count, D, block.count, Matrix{weights, kKeys}.transposed(), d_o, D, out.v + at, in.key_stride());
                add_product(
                    count, D, block.count, Matrix{d_scores, kKeys}.transposed(), queries, D, out.k + at,
                    in.key_stride());
                add_product(block.count, D, count, {d_scores, kKeys}, in.k + at, in.key_stride(), d_queries, D);
            }
            scale(block.count * D, in.scale, d_queries);
            for (int64_t i = 0; i < block.count; ++i)
                std::copy_n(d_queries + i * D, D, out.q + in.query(row, block.first + i, head));
        }
        if (out.sinks != nullptr) out.sinks[row * in.sizes.query_heads + head] = static_cast<float>(d_sink);
    }
}

// Multiply-adds of a forward pass.
double operations(const ssmn_attention_sizes& sizes, const int32_t* lo, const int32_t* hi) {
    double pairs = 0.0;
    for (int64_t i = 0; i < sizes.rows * sizes.steps; ++i) pairs += std::max(hi[i] - lo[i], 0);
    return 2.0 * pairs * sizes.query_heads * sizes.width;
}

}  // namespace

int32_t banded_attention(
    const ssmn_attention_sizes* sizes,
    const float* q,
    const float* k,
    const float* v,
    const int32_t* lo,
    const int32_t* hi,
    const float* sinks,
    float scale,
    float* o,
    float* lse,
    int32_t threads) {
    const AttentionArguments in{*sizes, q, k, v, lo, hi, sinks, scale};
    const int64_t blocks = (sizes->steps + kQueries - 1) / kQueries, heads = sizes->query_heads;
    return parallel_for(
        sizes->rows * heads * blocks, threads, operations(*sizes, lo, hi), forward_workspace(sizes->width),
        [&](int64_t task, float* workspace) {
            attend_block(in, task / (heads * blocks), task / blocks % heads, task % blocks, o, lse, workspace);
        });
}

int32_t banded_attention_backward(
    const ssmn_attention_sizes* sizes,
    const float* q,
    const float* k,
    const float* v,
    const int32_t* lo,
    const int32_t* hi,
    const float* sinks,
    float scale,
    const float* o,
    const float* lse,
    const float* d_o,
    const float* d_lse,
    float* d_q,
    float* d_k,
    float* d_v,
    float* d_sinks,
    int32_t threads) {
    const AttentionArguments in{*sizes, q, k, v, lo, hi, sinks, scale};
    const int64_t rows = sizes->rows, heads = sizes->query_heads;
    std::unique_ptr<float[]> row_sinks;
    if (sinks != nullptr) {
        row_sinks.reset(new (std::nothrow) float[rows * heads]);
        if (!row_sinks) return SSMN_OUT_OF_MEMORY;
    }
    const AttentionGradients out{d_q, d_k, d_v, row_sinks.get()};
    const int32_t status = parallel_for(
        rows * sizes->key_heads, threads, 2.5 * operations(*sizes, lo, hi), backward_workspace(sizes->width),
        [&](int64_t task, float* workspace) {
            attend_backward(in, task / sizes->key_heads, task % sizes->key_heads, o, lse, d_o, d_lse, out, workspace);
        });
    if (status == SSMN_OK && sinks != nullptr)
        for (int64_t head = 0; head < heads; ++head) {
            d_sinks[head] = 0.0f;
            for (int64_t row = 0; row < rows; ++row) d_sinks[head] += row_sinks[row * heads + head];
        }
    return status;
}

}  // namespace SSMN_PATH
}  // namespace ssmn

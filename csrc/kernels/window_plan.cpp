// Plans the rows of a window attention (segments, resets, closed steps, positions) and hands them to the kernels. Not
// compiled once per path: it uses the standard library.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "dispatch.h"
#include "pages.h"
#include "window.h"

namespace ssmn {
namespace {

// Slabs large enough that packing the W - 1 keys before each is a small part of the work, and enough of them for many
// threads. Their size depends on the sizes of the call only: it decides the order of the sums.
constexpr int64_t kSmallestSlab = 256;
constexpr int64_t kLargestSlab = 1024;
constexpr int64_t kTasksWanted = 64;
constexpr int64_t kSlabUnit = 64;

class Planner {
  public:
    Planner(
        const ssmn_window_sizes& sizes,
        const int64_t* position,
        const uint8_t* mask,
        const uint8_t* reset,
        const int64_t* cu_seqlens,
        double rope_theta)
        : sizes_(sizes), mask_(mask), reset_(reset), final_run_(sizes.streams) {
        if (mask != nullptr) steps_.reserve(sizes.rows * sizes.steps);
        runs_.reserve(sizes.streams);
        for (int64_t n = 0; n < sizes.streams; ++n) {
            const int64_t start = position == nullptr ? 0 : position[n];
            if (cu_seqlens == nullptr) {
                add_stream(n, n * sizes.steps, 0, sizes.steps, start);
            } else {
                add_stream(n, 0, cu_seqlens[n], cu_seqlens[n + 1], start);
            }
        }
        cut();
        if (rope_theta > 0.0) turn(rope_theta);
    }

    WindowPlan plan() const {
        return {
            sizes_,
            mask_,
            mask_ == nullptr ? nullptr : steps_.data(),
            runs_.data(),
            slabs_.data(),
            static_cast<int64_t>(slabs_.size()),
            slab_size_,
            final_run_.data(),
            multiplications_,
            turn_,
            coarse_.empty() ? nullptr : coarse_.data(),
            fine_.data(),
        };
    }

  private:
    void add_stream(int64_t stream, int64_t row, int64_t from, int64_t to, int64_t start) {
        const int64_t slots = sizes_.window - 1;
        WindowRun run{stream, row, first_at(from), 0, std::min(start, slots), start, 0};
        if (mask_ == nullptr && reset_ == nullptr) {
            run.count = to - from;
        } else {
            for (int64_t t = from; t < to; ++t) {
                if (reset_ != nullptr && reset_[row + t]) {
                    if (run.count > 0) runs_.push_back(run);
                    run = {stream, row, first_at(t), 0, 0, 0, 0};
                }
                if (mask_ != nullptr) {
                    if (!mask_[row + t]) continue;
                    steps_.push_back(static_cast<int32_t>(t));
                }
                ++run.count;
            }
        }
        final_run_[stream] = static_cast<int64_t>(runs_.size());
        runs_.push_back(run);
    }

    int64_t first_at(int64_t t) const { return mask_ == nullptr ? t : static_cast<int64_t>(steps_.size()); }

    void cut() {
        int64_t open = 0;
        for (const WindowRun& run : runs_) open += run.count;
        const int64_t wanted = open * sizes_.key_heads / kTasksWanted;
        slab_size_ = std::clamp((wanted + kSlabUnit - 1) / kSlabUnit * kSlabUnit, kSmallestSlab, kLargestSlab);
        double pairs = 0.0;
        for (size_t i = 0; i < runs_.size(); ++i)
            for (int64_t first = 0; first < runs_[i].count; first += slab_size_) {
                const int64_t last = std::min(first + slab_size_, runs_[i].count);
                slabs_.push_back({static_cast<int64_t>(i), first, last - first});
                pairs += static_cast<double>(last - first) * std::min(sizes_.window, runs_[i].carried + last);
            }
        multiplications_ = pairs * static_cast<double>(sizes_.query_heads * sizes_.width);
    }

    // The angles of every position would be as many as the queries, and each takes longer than a row's rotation.
    void turn(double theta) {
        const int64_t half = sizes_.width / 2;
        int64_t longest = 0;
        for (const WindowRun& run : runs_) longest = std::max(longest, run.count);
        while (turn_ < 64 && turn_ * turn_ < longest) turn_ *= 2;
        std::vector<double> frequency(half);
        for (int64_t i = 0; i < half; ++i)
            frequency[i] = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
        const auto append = [&](std::vector<double>& table, double position) {
            for (double f : frequency) table.push_back(std::cos(position * f));
            for (double f : frequency) table.push_back(std::sin(position * f));
        };
        for (int64_t m = 0; m < turn_; ++m) append(fine_, static_cast<double>(m));
        int64_t turns = 0;
        for (WindowRun& run : runs_) {
            run.first_turn = turns;
            for (int64_t i = 0; i < run.count; i += turn_, ++turns) append(coarse_, static_cast<double>(run.start + i));
        }
        if (coarse_.empty()) coarse_.resize(1);
    }

    const ssmn_window_sizes sizes_;
    const uint8_t* const mask_;
    const uint8_t* const reset_;
    std::vector<int32_t> steps_;
    std::vector<WindowRun> runs_;
    std::vector<WindowSlab> slabs_;
    std::vector<int64_t> final_run_;
    int64_t slab_size_ = 0;
    double multiplications_ = 0.0;
    int64_t turn_ = 1;
    std::vector<double> coarse_, fine_;
};

// Bytes of one head of all steps.
int64_t head_bytes(const ssmn_window_sizes& sizes, int32_t type) {
    return sizes.rows * sizes.steps * sizes.width * (type == SSMN_BFLOAT16 ? 2 : 4);
}

}  // namespace
}  // namespace ssmn

using namespace ssmn;

extern "C" int32_t ssmn_window_attention(
    const ssmn_window_sizes* sizes,
    int32_t type,
    const void* q,
    const void* k,
    const void* v,
    const float* ring_keys,
    const float* ring_values,
    const int64_t* position,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* sinks,
    float scale,
    double rope_theta,
    void* o,
    float* lse,
    float* final_keys,
    float* final_values,
    int64_t* final_position,
    int32_t threads) {
    try {
        const Planner planner(*sizes, position, mask, reset, cu_seqlens, rope_theta);
        const WindowPlan plan = planner.plan();
        for (int64_t n = 0; final_position != nullptr && n < sizes->streams; ++n) {
            const WindowRun& run = plan.runs[plan.final_run[n]];
            final_position[n] = run.start + run.count;
        }
        const WindowInputs in{type == SSMN_BFLOAT16, q, k, v, ring_keys, ring_values, sinks, scale};
        prefer_large_pages(o, head_bytes(*sizes, type) * sizes->query_heads);
        return kernels().window_forward(plan, {in, o, lse, final_keys, final_values, threads});
    } catch (const std::bad_alloc&) {
        return SSMN_OUT_OF_MEMORY;
    }
}

extern "C" int32_t ssmn_window_attention_backward(
    const ssmn_window_sizes* sizes,
    int32_t type,
    const void* q,
    const void* k,
    const void* v,
    const float* ring_keys,
    const float* ring_values,
    const int64_t* position,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* sinks,
    float scale,
    double rope_theta,
    const void* o,
    const float* lse,
    const void* d_o,
    const float* d_final_keys,
    const float* d_final_values,
    void* d_q,
    void* d_k,
    void* d_v,
    float* d_ring_keys,
    float* d_ring_values,
    float* d_sinks,
    int32_t threads) {
    try {
        const Planner planner(*sizes, position, mask, reset, cu_seqlens, rope_theta);
        const WindowPlan plan = planner.plan();
        const int64_t heads = sizes->query_heads;
        std::vector<double> parts(sinks == nullptr ? 0 : plan.slab_count * heads);
        const WindowInputs in{type == SSMN_BFLOAT16, q, k, v, ring_keys, ring_values, sinks, scale};
        prefer_large_pages(d_q, head_bytes(*sizes, type) * heads);
        prefer_large_pages(d_k, head_bytes(*sizes, type) * sizes->key_heads);
        prefer_large_pages(d_v, head_bytes(*sizes, type) * sizes->key_heads);
        const int32_t status = kernels().window_backward(
            plan, {in, o, lse, d_o, d_final_keys, d_final_values, d_q, d_k, d_v, d_ring_keys, d_ring_values,
                   sinks == nullptr ? nullptr : parts.data(), threads});
        for (int64_t head = 0; sinks != nullptr && head < heads; ++head) {
            double sum = 0.0;
            for (int64_t slab = 0; slab < plan.slab_count; ++slab) sum += parts[slab * heads + head];
            d_sinks[head] = static_cast<float>(sum);
        }
        return status;
    } catch (const std::bad_alloc&) {
        return SSMN_OUT_OF_MEMORY;
    }
}

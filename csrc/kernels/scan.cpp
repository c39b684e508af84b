// The diagonal complex recurrence. A task is a stretch of channels of one stream; it walks along the rows, so that
// every array is read and written in order, and finds the step before in the row that it has just written.
#include <cstring>

#include "parallel.h"
#include "path.h"
#include "vectors.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Channels of a task, whatever the number of threads.
constexpr int64_t kScanChannels = 128;

// Real and imaginary parts of some channels.
struct Row {
    float *real, *imaginary;
};

struct ConstRow {
    const float *real, *imaginary;
};

// One task: channels [from, from + count) of the steps [first, last).
struct Stretch {
    int64_t channels, from, count, first, last;

    Row row(float* array, int64_t t) const {
        float* real = array + 2 * t * channels + from;
        return {real, real + channels};
    }

    ConstRow row(const float* array, int64_t t) const {
        const float* real = array + 2 * t * channels + from;
        return {real, real + channels};
    }

    void copy(Row to, ConstRow from_row) const {
        std::memcpy(to.real, from_row.real, sizeof(float) * static_cast<size_t>(count));
        std::memcpy(to.imaginary, from_row.imaginary, sizeof(float) * static_cast<size_t>(count));
    }

    void clear(Row to) const {
        std::memset(to.real, 0, sizeof(float) * static_cast<size_t>(count));
        std::memset(to.imaginary, 0, sizeof(float) * static_cast<size_t>(count));
    }
};

// h = a p + x
inline void advance(int64_t n, ConstRow a, ConstRow p, ConstRow x, Row h) {
    const float* __restrict ar = a.real;
    const float* __restrict ai = a.imaginary;
    const float* __restrict pr = p.real;
    const float* __restrict pi = p.imaginary;
    const float* __restrict xr = x.real;
    const float* __restrict xi = x.imaginary;
    float* __restrict hr = h.real;
    float* __restrict hi = h.imaginary;
    for (int64_t i = 0; i < n; ++i) {
        hr[i] = xr[i] + ar[i] * pr[i] - ai[i] * pi[i];
        hi[i] = xi[i] + ar[i] * pi[i] + ai[i] * pr[i];
    }
}

// With g the gradient of h = a p + x: d_a = conj(p) g, added to what is there if `adds`, and g becomes conj(a) g.
template <bool adds>
inline void retreat(int64_t n, ConstRow a, ConstRow p, Row g, Row d_a) {
    const float* __restrict ar = a.real;
    const float* __restrict ai = a.imaginary;
    const float* __restrict pr = p.real;
    const float* __restrict pi = p.imaginary;
    float* __restrict gr = g.real;
    float* __restrict gi = g.imaginary;
    float* __restrict dr = d_a.real;
    float* __restrict di = d_a.imaginary;
    for (int64_t i = 0; i < n; ++i) {
        const float real = gr[i] * pr[i] + gi[i] * pi[i], imaginary = gi[i] * pr[i] - gr[i] * pi[i];
        dr[i] = adds ? dr[i] + real : real;
        di[i] = adds ? di[i] + imaginary : imaginary;
        const float back = ar[i] * gr[i] + ai[i] * gi[i];
        gi[i] = ar[i] * gi[i] - ai[i] * gr[i];
        gr[i] = back;
    }
}

// g += d, and d_x = g
inline void collect(int64_t n, const float* __restrict d, float* __restrict g, float* __restrict d_x) {
    for (int64_t i = 0; i < n; ++i) d_x[i] = g[i] += d[i];
}

// The stretches of a call, by number.
struct Stretches {
    const ssmn_scan_call& call;
    const int64_t* cu_seqlens;

    int64_t per_stream() const { return (call.channels + kScanChannels - 1) / kScanChannels; }

    int64_t stream(int64_t task) const { return task / per_stream(); }

    Stretch stretch(int64_t task) const {
        const int64_t n = stream(task), from = task % per_stream() * kScanChannels;
        const int64_t first = cu_seqlens == nullptr ? n * call.steps : cu_seqlens[n];
        const int64_t last = cu_seqlens == nullptr ? first + call.steps : cu_seqlens[n + 1];
        return {call.channels, from, smaller(kScanChannels, call.channels - from), first, last};
    }

    double operations(double each) const {
        return each * static_cast<double>(call.rows * call.steps) * static_cast<double>(call.channels);
    }
};

inline bool is_set(const uint8_t* flags, int64_t t, bool otherwise) {
    return flags == nullptr ? otherwise : flags[t] != 0;
}

}  // namespace

int32_t scan(
    const ssmn_scan_call* call,
    const float* a,
    const float* x,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    float* h,
    float* final_state,
    int32_t threads) {
    const Stretches all{*call, cu_seqlens};
    const int64_t tasks = call->streams * all.per_stream();
    return parallel_for(tasks, threads, all.operations(4.0), 0, [&](int64_t task, float*) {
        const int64_t n = all.stream(task);
        const Stretch here = all.stretch(task);
        const bool starts_fresh = initial_state == nullptr;
        ConstRow before = starts_fresh ? ConstRow{} : here.row(initial_state, n);
        for (int64_t t = here.first; t < here.last; ++t) {
            if (is_set(reset, t, false)) before = {};
            const Row now = here.row(h, t);
            if (!is_set(mask, t, true)) {
                if (before.real == nullptr)
                    here.clear(now);
                else
                    here.copy(now, before);
            } else if (before.real == nullptr) {
                here.copy(now, here.row(x, t));
            } else {
                advance(here.count, here.row(a, call->shared ? 0 : t), before, here.row(x, t), now);
            }
            before = {now.real, now.imaginary};
        }
        if (final_state == nullptr) return;
        if (before.real == nullptr)
            here.clear(here.row(final_state, n));
        else
            here.copy(here.row(final_state, n), before);
    });
}

int32_t scan_backward(
    const ssmn_scan_call* call,
    const float* a,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    const float* h,
    const float* d_h,
    const float* d_final_state,
    float* d_a,
    float* d_x,
    float* d_initial_state,
    int32_t threads) {
    const Stretches all{*call, cu_seqlens};
    const int64_t tasks = call->streams * all.per_stream();
    return parallel_for(tasks, threads, all.operations(10.0), 2 * kScanChannels, [&](int64_t task, float* space) {
        const int64_t n = all.stream(task);
        const Stretch here = all.stretch(task);
        const Row g{space, space + kScanChannels};
        if (d_final_state == nullptr)
            here.clear(g);
        else
            here.copy(g, here.row(d_final_state, n));
        if (call->shared) here.clear(here.row(d_a, n));
        for (int64_t t = here.last - 1; t >= here.first; --t) {
            const Row d_input = here.row(d_x, t);
            const ConstRow d_now = here.row(d_h, t);
            const bool is_fresh = is_set(reset, t, false), is_open = is_set(mask, t, true);
            collect(here.count, d_now.real, g.real, d_input.real);
            collect(here.count, d_now.imaginary, g.imaginary, d_input.imaginary);
            if (!is_open) here.clear(d_input);
            ConstRow before{};
            if (!is_fresh) {
                if (t > here.first)
                    before = here.row(h, t - 1);
                else if (initial_state != nullptr)
                    before = here.row(initial_state, n);
            }
            if (is_open && before.real != nullptr) {
                if (call->shared)
                    retreat<true>(here.count, here.row(a, 0), before, g, here.row(d_a, n));
                else
                    retreat<false>(here.count, here.row(a, t), before, g, here.row(d_a, t));
            } else {
                if (!call->shared) here.clear(here.row(d_a, t));
                if (is_fresh) here.clear(g);
            }
        }
        if (d_initial_state != nullptr) here.copy(here.row(d_initial_state, n), {g.real, g.imaginary});
    });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

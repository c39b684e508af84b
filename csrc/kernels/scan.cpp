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

// A vector or a single float, for whole vectors of channels and for those that are left over.
template <typename Number>
SSMN_INLINE Number get(const float* from) {
    Number x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

template <typename Number>
SSMN_INLINE void put(float* to, Number x) {
    std::memcpy(to, &x, sizeof x);
}

// h = a p + x at channel i.
template <typename Number>
SSMN_INLINE void advance_at(int64_t i, ConstRow a, ConstRow p, ConstRow x, Row h) {
    const Number ar = get<Number>(a.real + i), ai = get<Number>(a.imaginary + i);
    const Number pr = get<Number>(p.real + i), pi = get<Number>(p.imaginary + i);
    put<Number>(h.real + i, get<Number>(x.real + i) + ar * pr - ai * pi);
    put<Number>(h.imaginary + i, get<Number>(x.imaginary + i) + ar * pi + ai * pr);
}

inline void advance(int64_t n, ConstRow a, ConstRow p, ConstRow x, Row h) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) advance_at<Vec>(i, a, p, x, h);
    for (; i < n; ++i) advance_at<float>(i, a, p, x, h);
}

// The way back through h = a p + x at channel i: g, the gradient that comes from later steps, gets that of h itself and
// is d_x; d_a = conj(p) g, added to what is there if `adds`; and g becomes conj(a) g.
template <typename Number, bool adds>
SSMN_INLINE void retreat_at(int64_t i, ConstRow a, ConstRow p, ConstRow d_h, Row g, Row d_x, Row d_a) {
    const Number gr = get<Number>(g.real + i) + get<Number>(d_h.real + i);
    const Number gi = get<Number>(g.imaginary + i) + get<Number>(d_h.imaginary + i);
    put<Number>(d_x.real + i, gr);
    put<Number>(d_x.imaginary + i, gi);
    const Number pr = get<Number>(p.real + i), pi = get<Number>(p.imaginary + i);
    Number dr = gr * pr + gi * pi, di = gi * pr - gr * pi;
    if (adds) {
        dr = dr + get<Number>(d_a.real + i);
        di = di + get<Number>(d_a.imaginary + i);
    }
    put<Number>(d_a.real + i, dr);
    put<Number>(d_a.imaginary + i, di);
    const Number ar = get<Number>(a.real + i), ai = get<Number>(a.imaginary + i);
    put<Number>(g.real + i, ar * gr + ai * gi);
    put<Number>(g.imaginary + i, ar * gi - ai * gr);
}

template <bool adds>
inline void retreat(int64_t n, ConstRow a, ConstRow p, ConstRow d_h, Row g, Row d_x, Row d_a) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) retreat_at<Vec, adds>(i, a, p, d_h, g, d_x, d_a);
    for (; i < n; ++i) retreat_at<float, adds>(i, a, p, d_h, g, d_x, d_a);
}

// g += d
inline void collect(int64_t n, const float* __restrict d, float* __restrict g) {
    for (int64_t i = 0; i < n; ++i) g[i] += d[i];
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
            ConstRow before{};
            if (!is_fresh) {
                if (t > here.first)
                    before = here.row(h, t - 1);
                else if (initial_state != nullptr)
                    before = here.row(initial_state, n);
            }
            if (is_open && before.real != nullptr) {
                if (call->shared)
                    retreat<true>(here.count, here.row(a, 0), before, d_now, g, d_input, here.row(d_a, n));
                else
                    retreat<false>(here.count, here.row(a, t), before, d_now, g, d_input, here.row(d_a, t));
                continue;
            }
            collect(here.count, d_now.real, g.real);
            collect(here.count, d_now.imaginary, g.imaginary);
            if (is_open)
                here.copy(d_input, {g.real, g.imaginary});
            else
                here.clear(d_input);
            if (!call->shared) here.clear(here.row(d_a, t));
            if (is_fresh) here.clear(g);
        }
        if (d_initial_state != nullptr) here.copy(here.row(d_initial_state, n), {g.real, g.imaginary});
    });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

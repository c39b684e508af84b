// The forward recurrence of the fused memory over one run and some columns of the values.
#ifndef SSMN_MEMORY_WRITE_H
#define SSMN_MEMORY_WRITE_H

#include "memory_pass.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Brings window.state to what it is before the run.
inline void start_run(const Pass& pass, const Window& window, Lane lane, const MemoryRun& run, Columns columns) {
    if (run.begin == kGoOn) return;
    if (pass.starts(run)) {
        load_state(pass, columns, pass.initial_state + pass.stream_state(run.begin, lane.head), window.state);
    } else {
        zero_block(pass.key_width, columns.whole(), window.state + columns.first, pass.value_stride);
    }
}

// u [m, columns] of a run: diag(w) V - diag(e exp(G)) K S_0, solved. Leaves V in `values` if that is not null.
inline void update_run(
    const Pass& pass,
    const Window& window,
    Lane lane,
    const MemoryRun& run,
    int64_t at,
    Columns columns,
    float* u,
    int64_t u_row,
    float* values,
    float* spare) {
    const int64_t n = run.length(), m = window.count[at + n - 1], whole = columns.whole();
    const int64_t offset = pass.scalar(lane.row, run.first, lane.head) * pass.value_width + columns.first;
    const int32_t* position = m == n ? nullptr : window.position + at;
    float* packed = values == nullptr ? u : values;
    pack(m, columns.width, pass.v, offset, pass.heads * pass.value_width, pass.half, position, packed, u_row);
    scale_block(m, whole, window.write + at, packed, u_row, u, u_row);
    if (!pass.erases) return;
    if (pass.starts(run))
        multiply_all(
            m, whole, pass.key_width, {window.k + at * pass.key_stride, pass.key_stride}, window.state + columns.first,
            pass.value_stride, {u, u_row, 1.0f, window.minus_erase + at});
    solve(m, whole, window.factor + at * kChunk, u, u_row, spare);
}

// S = exp(G_n) S + (exp(G_n - G) K)^T U.
template <bool Pairs>
inline void advance_run(
    const Pass& pass,
    const Window& window,
    const MemoryRun& run,
    int64_t at,
    Columns columns,
    const float* u,
    int64_t u_row,
    float* spare,
    Ahead* ahead) {
    const int64_t n = run.length(), m = window.count[at + n - 1], whole = columns.whole();
    if (m == 0) return;
    const float kept = pass.starts(run) ? window.from_start[at + n - 1] : 0.0f;
    const Into into{window.state + columns.first, pass.value_stride, kept, nullptr, ahead};
    if constexpr (Pairs) {
        const Matrix keys = Matrix{window.k_pairs + at * pass.key_stride, pass.key_stride}.transposed();
        pair_rows(m, whole, window.to_end + at, u, u_row, spare, whole);
        multiply_all<true>(pass.key_width, whole, (m + 1) / 2, keys, spare, whole, into);
    } else {
        const Matrix keys = Matrix{window.k + at * pass.key_stride, pass.key_stride}.transposed();
        scale_block(m, whole, window.to_end + at, u, u_row, spare, whole);
        multiply_all(pass.key_width, whole, m, keys, spare, whole, into);
    }
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

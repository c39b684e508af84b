// The window attention as the kernels of a path see it: rows already planned, arrays as plain pointers.
//
// A *run* is a stretch of open steps of one stream without a reset. Its keys, in order, are the `carried` ones of the
// ring (only the first run of a stream has any) and then those of its own steps. Query i of a run sees the keys
// (carried + i - window, carried + i]. A *slab* is a stretch of a run's queries, the work of one task per key head.
#ifndef SSMN_WINDOW_H
#define SSMN_WINDOW_H

#include "ssmn.h"

namespace ssmn {

struct WindowRun {
    int64_t stream;
    int64_t row;         // the flat number of the first step of the run's row
    int64_t first;       // its first step in that row, or in WindowPlan::steps if there is such a table
    int64_t count;       // of its steps
    int64_t carried;     // keys that it finds in the ring
    int64_t start;       // position of its first step
    int64_t first_turn;  // of its coarse rotary angles
};

struct WindowSlab {
    int64_t run;
    int64_t first;  // of the run's queries
    int64_t count;
};

struct WindowPlan {
    ssmn_window_sizes sizes;
    const uint8_t* mask;   // [B, T] or null
    const int32_t* steps;  // null, or the open steps of the rows one after the other, numbered within their row
    const WindowRun* runs;
    const WindowSlab* slabs;
    int64_t slab_count;
    int64_t slab_size;         // queries in every slab of a run but the last
    const int64_t* final_run;  // [N] the run whose end is the stream's
    double multiplications;    // multiply-adds of all scores
    // Rotary angles, cos and sin: the position start + i, i = turn * n + m, has the sum of two.
    int64_t turn;          // m < turn
    const double* coarse;  // [turns, 2, D / 2] of start + turn * n; null if nothing rotates
    const double* fine;    // [turn, 2, D / 2] of m

    // The flat number of a step.
    int64_t row(const WindowRun& run, int64_t query) const {
        return run.row + (steps == nullptr ? run.first + query : steps[run.first + query]);
    }
};

struct WindowInputs {
    bool bfloat16;
    const void *q, *k, *v;
    const float *ring_keys, *ring_values;  // null if nothing is carried
    const float* sinks;
    float scale;
};

struct WindowForward {
    WindowInputs in;
    void* o;
    float* lse;
    float *final_keys, *final_values;  // null if nobody asks for them
    int32_t threads;
};

struct WindowBackward {
    WindowInputs in;
    const void* o;
    const float* lse;
    const void* d_o;
    const float *d_final_keys, *d_final_values;  // null means zeros
    void *d_q, *d_k, *d_v;
    float *d_ring_keys, *d_ring_values;  // null if the caller gave no ring
    double* d_sinks;                     // [slabs, Hq] or null: the part of every slab
    int32_t threads;
};

using WindowForwardFunction = int32_t(const WindowPlan& plan, const WindowForward& call);
using WindowBackwardFunction = int32_t(const WindowPlan& plan, const WindowBackward& call);

}  // namespace ssmn

#endif

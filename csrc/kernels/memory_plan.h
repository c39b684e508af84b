// How the steps of a batch are cut into runs: at the edges of chunks, before resets and between packed segments.
#ifndef SSMN_MEMORY_PLAN_H
#define SSMN_MEMORY_PLAN_H

#include <cstdint>

#include "memory.h"
#include "ssmn.h"

namespace ssmn {

// The inputs that the forward and the backward pass share (ssmn.h).
struct MemoryArguments {
    const ssmn_memory_call& call;
    const void *q, *k, *v;
    const float *eta, *log_decay, *erase;
    const uint8_t *mask, *reset;
    const int64_t* cu_seqlens;
    const float* initial_state;
};

// How many steps of a call are worked on together. A rule that erases pays more for every pair of steps.
inline int64_t chunk_size(const ssmn_memory_call& call) {
    return call.rule == SSMN_HEBBIAN ? kChunk : kChunk / 2;
}

enum : int64_t { kGoOn = -1, kFresh = -2 };

// Consecutive steps [first, last) of one row, at most a chunk, that share one starting state.
struct MemoryRun {
    int64_t first;
    int64_t last;
    int64_t begin;  // kGoOn (at the edge of a chunk only), kFresh (from zeros), or the stream that begins here
    int64_t end;    // the stream that ends here, or kGoOn

    int64_t length() const { return last - first; }
};

class MemoryPlan {
  public:
    MemoryPlan(const MemoryArguments& in, int64_t chunk);
    ~MemoryPlan();
    MemoryPlan(const MemoryPlan&) = delete;
    MemoryPlan& operator=(const MemoryPlan&) = delete;

    bool made() const { return runs_ != nullptr && chunks_ != nullptr; }

    // Whether a stream has no steps.
    bool is_empty(int64_t stream) const {
        return bounds_ == nullptr ? steps_ == 0 : bounds_[stream] == bounds_[stream + 1];
    }

    // The runs of a chunk of a row, in order.
    const MemoryRun* first(int64_t row, int64_t chunk) const { return runs_ + chunks_[row * count_ + chunk]; }
    const MemoryRun* last(int64_t row, int64_t chunk) const { return runs_ + chunks_[row * count_ + chunk + 1]; }

  private:
    int64_t steps_;
    int64_t chunk_;
    const int64_t* bounds_;
    int64_t count_;  // chunks of a row
    MemoryRun* runs_ = nullptr;
    int64_t* chunks_ = nullptr;  // [rows * count_ + 1]: where the runs of every chunk begin
};

}  // namespace ssmn

#endif

// The threads of the library: started when first needed, asleep between calls, never joined.
#ifndef SSMN_POOL_H
#define SSMN_POOL_H

#include <atomic>
#include <cstdint>

#include "ssmn.h"

namespace ssmn {

// Where the workers of one gang wait for each other. A worker spins briefly and then sleeps: on a busy machine the
// others may not be running.
class Barrier {
  public:
    explicit Barrier(int32_t workers) : workers_(workers) {}
    void wait();

  private:
    const int32_t workers_;
    std::atomic<int32_t> arrived_{0};
    std::atomic<uint32_t> round_{0};
};

// What a waiting thread does between two looks: the first times it pauses, later it gives the processor away.
void relax(int64_t looks);

struct Gang {
    int32_t workers;
    Barrier* barrier;
};

// Called once by every worker of a gang, at the same time.
using GangFunction = void (*)(const void* body, const Gang& gang, int32_t worker);

// Runs `function` on up to `threads` workers, the caller (worker 0) included, and returns when all have. There are
// fewer workers than asked for if the system refuses threads, and one if the threads are busy with another caller's
// gang.
void run_gang(int32_t threads, GangFunction function, const void* body);

// Called once for every task, in any order, with a workspace aligned to 64 bytes that nobody else uses meanwhile.
using TaskFunction = void (*)(const void* body, int64_t task, void* workspace);

// Runs `function` for every task in [0, tasks) on at most `threads` workers. Returns a status of ssmn.h.
int32_t run_tasks(int64_t tasks, int32_t threads, int64_t workspace_bytes, TaskFunction function, const void* body);

}  // namespace ssmn

#endif

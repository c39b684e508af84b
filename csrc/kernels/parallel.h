#ifndef SSMN_PARALLEL_H
#define SSMN_PARALLEL_H

#include <cstdint>

#include "pool.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Below this many multiply-adds a thread costs more than it brings.
constexpr double kOperationsPerThread = 5e5;

// Calls body(task, workspace) once for every task in [0, tasks), on at most `threads` threads, each with a workspace of
// `workspace` uninitialised floats, aligned to 64 bytes. Tasks write to disjoint places, so the schedule cannot change
// a result. `body` does not throw. Returns a status of ssmn.h.
template <typename Body>
int32_t parallel_for(int64_t tasks, int32_t threads, double operations, int64_t workspace, const Body& body) {
    const double useful = 1.0 + operations / kOperationsPerThread;
    const int32_t workers = useful < threads ? static_cast<int32_t>(useful) : threads;
    return run_tasks(
        tasks, workers, workspace * static_cast<int64_t>(sizeof(float)),
        [](const void* context, int64_t task, void* space) {
            (*static_cast<const Body*>(context))(task, static_cast<float*>(space));
        },
        &body);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

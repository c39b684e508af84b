#ifndef SSMN_PARALLEL_H
#define SSMN_PARALLEL_H

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "ssmn.h"

namespace ssmn {

// Below this many multiply-adds a thread costs more than it brings.
constexpr double kOperationsPerThread = 1e6;

// Calls body(task, workspace) once for every task in [0, tasks), on at most `threads` threads, each with a workspace of
// `workspace` uninitialised floats. Tasks write to disjoint places, so the schedule cannot change a result. `body` does
// not throw. Returns a status of ssmn.h.
template <typename Body>
int32_t parallel_for(int64_t tasks, int32_t threads, double operations, int64_t workspace, const Body& body) {
    if (tasks == 0) return SSMN_OK;
    int64_t workers = std::min<int64_t>({threads, tasks, 1 + static_cast<int64_t>(operations / kOperationsPerThread)});
    std::unique_ptr<float[]> memory(new (std::nothrow) float[workers * workspace]);
    if (!memory) return SSMN_OUT_OF_MEMORY;
    std::atomic<int64_t> next{0};
    const auto work = [&](int64_t worker) {
        for (int64_t task = next++; task < tasks; task = next++) body(task, memory.get() + worker * workspace);
    };
    std::vector<std::thread> others;
    try {
        others.reserve(workers - 1);
        for (int64_t worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
    } catch (const std::exception&) {
        // The system refuses more threads: those that run, at least this one, do all the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
    return SSMN_OK;
}

}  // namespace ssmn

#endif

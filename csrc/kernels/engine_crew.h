// The workers of one call: they go through the same phases, and take units of work until a phase has none left.
// A worker that the system holds up between two units delays nobody.
#ifndef SSMN_ENGINE_CREW_H
#define SSMN_ENGINE_CREW_H

#include <atomic>
#include <cstdint>

#include "path.h"
#include "pool.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

// Where a gang stands: the phase in the upper half, the next unit in the lower one; and how many units are done.
struct Progress {
    std::atomic<uint64_t> claim{0};
    std::atomic<int64_t> done{0};
};

// One worker's view of its gang.
class Crew {
  public:
    Crew(Progress& progress, int32_t workers, int32_t worker)
        : progress_(progress), workers_(workers), worker_(worker) {}

    int32_t workers() const { return workers_; }
    int32_t worker() const { return worker_; }

    // Calls body(unit) for all units, each on some worker, and returns when all are done.
    template <typename Body>
    void each(int64_t units, const Body& body) {
        if (workers_ == 1) {
            for (int64_t unit = 0; unit < units; ++unit) body(unit);
            return;
        }
        if (units == 0) return;
        const uint32_t phase = phase_++;
        for (int64_t looks = 0;;) {
            uint64_t claim = progress_.claim.load(std::memory_order_acquire);
            if (static_cast<uint32_t>(claim >> 32) != phase) return;
            const int64_t unit = static_cast<int64_t>(claim & 0xffffffffu);
            if (unit >= units) {
                relax(looks++);
                continue;
            }
            if (!progress_.claim.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel)) continue;
            body(unit);
            if (progress_.done.fetch_add(1, std::memory_order_acq_rel) + 1 < units) continue;
            progress_.done.store(0, std::memory_order_relaxed);
            progress_.claim.store(static_cast<uint64_t>(phase + 1u) << 32, std::memory_order_release);
            return;
        }
    }

  private:
    Progress& progress_;
    const int32_t workers_, worker_;
    uint32_t phase_ = 0;
};

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

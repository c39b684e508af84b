#include "memory_plan.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace ssmn {
namespace {

// The streams of one row, in order: where each begins, and the streams without steps left out.
class Segments {
  public:
    Segments(int64_t row, int64_t steps, const int64_t* bounds, int64_t streams)
        : steps_(steps), bounds_(bounds), stream_(bounds == nullptr ? row : 0), streams_(streams) {
        skip_empty();
    }

    int64_t stream() const { return stream_; }
    int64_t begin() const { return bounds_ == nullptr ? 0 : bounds_[stream_]; }
    int64_t end() const { return bounds_ == nullptr ? steps_ : bounds_[stream_ + 1]; }
    void next() {
        ++stream_;
        skip_empty();
    }

  private:
    void skip_empty() {
        if (bounds_ == nullptr) return;
        while (stream_ < streams_ && bounds_[stream_] == bounds_[stream_ + 1]) ++stream_;
    }

    int64_t steps_;
    const int64_t* bounds_;
    int64_t stream_;
    int64_t streams_;
};

// Calls emit(run) for the runs of a row in order.
template <typename Emit>
void cut(int64_t row, int64_t steps, int64_t chunk, const uint8_t* reset, Segments segment, const Emit& emit) {
    for (int64_t t = 0; t < steps;) {
        const bool fresh = reset != nullptr && reset[row * steps + t] != 0;
        MemoryRun run{t, t, kGoOn, kGoOn};
        if (t == segment.begin()) run.begin = segment.stream();
        if (fresh) run.begin = kFresh;
        const int64_t limit = std::min((t / chunk + 1) * chunk, segment.end());
        int64_t last = t + 1;
        if (reset == nullptr) {
            last = limit;
        } else {
            const void* found = std::memchr(reset + row * steps + last, 1, limit - last);
            last = found == nullptr ? limit : static_cast<const uint8_t*>(found) - (reset + row * steps);
        }
        run.last = last;
        if (last == segment.end()) {
            run.end = segment.stream();
            if (last < steps) segment.next();
        }
        emit(run);
        t = last;
    }
}

}  // namespace

MemoryPlan::MemoryPlan(const MemoryArguments& in, int64_t chunk)
    : steps_(in.call.steps), chunk_(chunk), bounds_(in.cu_seqlens), count_((steps_ + chunk - 1) / chunk) {
    const int64_t rows = in.call.rows;
    const auto cut_all = [&](const auto& emit) {
        for (int64_t row = 0; row < rows; ++row)
            cut(row, steps_, chunk_, in.reset, {row, steps_, bounds_, in.call.streams},
                [&](const MemoryRun& run) { emit(row, run); });
    };
    int64_t total = 0;
    cut_all([&](int64_t, const MemoryRun&) { ++total; });
    chunks_ = new (std::nothrow) int64_t[rows * count_ + 1];
    runs_ = new (std::nothrow) MemoryRun[std::max<int64_t>(total, 1)];
    if (!made()) return;
    int64_t number = 0;
    cut_all([&](int64_t row, const MemoryRun& run) {
        if (run.first % chunk_ == 0) chunks_[row * count_ + run.first / chunk_] = number;
        runs_[number++] = run;
    });
    chunks_[rows * count_] = number;
}

MemoryPlan::~MemoryPlan() {
    delete[] runs_;
    delete[] chunks_;
}

}  // namespace ssmn

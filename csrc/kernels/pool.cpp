#include "pool.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace ssmn {
namespace {

constexpr int kSpins = 2000;                 // some tens of microseconds
constexpr int64_t kKept = int64_t{4} << 20;  // bytes of workspace that stay with the pool
constexpr std::align_val_t kAlignment{64};

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `ready()`: spins for a moment, then gives the processor away between looks.
template <typename Ready>
void spin_until(const Ready& ready) {
    for (int64_t i = 0; !ready(); ++i) relax(i);
}

// The OpenMP runtime that something else in this process has loaded, torch above all. Its threads go on spinning for
// milliseconds after every piece of work: beside them, threads of our own would have half a processor each. So a gang
// runs on them if they are there. The names are the ABI that GCC and Clang compile `#pragma omp parallel` to.
class OpenMp {
  public:
    static const OpenMp* loaded() {
#if !defined(_WIN32)
        static std::atomic<bool> known{false};
        static OpenMp runtime;
        if (known.load(std::memory_order_acquire)) return &runtime;
        static std::mutex guard;
        std::lock_guard<std::mutex> lock(guard);
        OpenMp found;
        found.parallel_ = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        found.number_ = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
        found.count_ = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
        if (found.parallel_ == nullptr || found.number_ == nullptr || found.count_ == nullptr) return nullptr;
        runtime = found;
        known.store(true, std::memory_order_release);
        return &runtime;
#else
        return nullptr;
#endif
    }

    void run(int32_t threads, GangFunction function, const void* body) const {
        Barrier barrier(threads);
        Team team{this, threads, function, body, &barrier};
        parallel_(&OpenMp::join, &team, static_cast<unsigned>(threads), 0);
    }

  private:
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    using Number = int (*)();

    struct Team {
        const OpenMp* runtime;
        int32_t threads;
        GangFunction function;
        const void* body;
        Barrier* barrier;
    };

    static void join(void* data) {
        const Team& team = *static_cast<const Team*>(data);
        const int32_t number = team.runtime->number_();
        if (team.runtime->count_() == team.threads) {
            team.function(team.body, {team.threads, team.barrier}, number);
        } else if (number == 0) {  // fewer than asked for: inside somebody's parallel region, say
            Barrier alone(1);
            team.function(team.body, {1, &alone}, 0);
        }
    }

    Parallel parallel_ = nullptr;
    Number number_ = nullptr, count_ = nullptr;
};

struct Job {
    GangFunction function = nullptr;
    const void* body = nullptr;
    Gang gang{1, nullptr};
    std::atomic<int32_t>* remaining = nullptr;
};

// A thread and its letter box. Whoever posts is the one that owns the pool.
class Worker {
  public:
    explicit Worker(int32_t number) : number_(number) { std::thread(&Worker::live, this).detach(); }

    void post(const Job& job) {
        job_ = job;
        posted_.fetch_add(1);
        if (asleep_.load()) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_one();
        }
    }

  private:
    [[noreturn]] void live() {
        for (uint32_t seen = 0;; ++seen) {
            for (int i = 0; i < kSpins && posted_.load(std::memory_order_acquire) == seen; ++i) pause();
            if (posted_.load() == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                asleep_.store(true);
                while (posted_.load() == seen) wake_.wait(lock);
                asleep_.store(false);
            }
            const Job job = job_;
            job.function(job.body, job.gang, number_);
            job.remaining->fetch_sub(1, std::memory_order_acq_rel);
        }
    }

    const int32_t number_;
    Job job_;
    std::atomic<uint32_t> posted_{0};
    std::atomic<bool> asleep_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

#if !defined(_WIN32)
std::atomic<bool> g_forked_before{false};
const pid_t kLoadedIn = getpid();
#endif

class Pool {
  public:
    // The pool of this process: a forked child has none of its parent's threads and starts anew.
    static Pool& instance() {
        static std::mutex guard;
        static std::atomic<Pool*> pool{nullptr};
#if !defined(_WIN32)
        static std::atomic<pid_t> owner{0};
        const pid_t self = getpid();
        if (Pool* mine = pool.load(std::memory_order_acquire); mine != nullptr && owner.load() == self) return *mine;
        std::lock_guard<std::mutex> lock(guard);
        if (pool.load() == nullptr || owner.load() != self) {
            pool.store(new Pool(self == kLoadedIn && !g_forked_before.load()), std::memory_order_release);
            owner.store(self);
        }
#else
        std::lock_guard<std::mutex> lock(guard);
        if (pool.load() == nullptr) pool.store(new Pool(true));
#endif
        return *pool.load();
    }

    explicit Pool(bool may_borrow) : may_borrow_(may_borrow) {}

    std::mutex& owner() { return owner_; }

    void run(int32_t threads, GangFunction function, const void* body) {
        const OpenMp* runtime = may_borrow_ ? OpenMp::loaded() : nullptr;
        if (runtime != nullptr) return runtime->run(threads, function, body);
        try {
            while (static_cast<int32_t>(workers_.size()) < threads - 1)
                workers_.push_back(std::make_unique<Worker>(static_cast<int32_t>(workers_.size()) + 1));
        } catch (const std::exception&) {
            // The system refuses more threads: those that run, at least this one, do all the work.
        }
        const int32_t count = std::min(threads, static_cast<int32_t>(workers_.size()) + 1);
        Barrier barrier(count);
        std::atomic<int32_t> remaining{count - 1};
        const Gang gang{count, &barrier};
        for (int32_t i = 1; i < count; ++i) workers_[i - 1]->post({function, body, gang, &remaining});
        function(body, gang, 0);
        spin_until([&] { return remaining.load(std::memory_order_acquire) == 0; });
    }

    // A workspace for the owner of the pool; null if there is no memory. Given back by the next call or `release`.
    void* workspace(int64_t bytes) {
        if (bytes > size_) {
            release(0);
            memory_ = ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow);
            size_ = memory_ == nullptr ? 0 : bytes;
        }
        return memory_;
    }

    void release(int64_t keep) {
        if (size_ <= keep) return;
        ::operator delete(memory_, kAlignment);
        memory_ = nullptr;
        size_ = 0;
    }

  private:
    const bool may_borrow_;  // not in a forked child: OpenMP does not know that its threads stayed behind
    std::mutex owner_;
    std::vector<std::unique_ptr<Worker>> workers_;
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

void run_alone(GangFunction function, const void* body) {
    Barrier barrier(1);
    function(body, {1, &barrier}, 0);
}

struct TaskQueue {
    int64_t tasks;
    TaskFunction function;
    const void* body;
    char* workspace;
    int64_t workspace_bytes;
    std::atomic<int64_t>* next;
};

void work_off(const void* body, const Gang&, int32_t worker) {
    const TaskQueue& queue = *static_cast<const TaskQueue*>(body);
    char* workspace = queue.workspace + worker * queue.workspace_bytes;
    for (int64_t task = (*queue.next)++; task < queue.tasks; task = (*queue.next)++)
        queue.function(queue.body, task, workspace);
}

}  // namespace

void relax(int64_t looks) {
    if (looks < kSpins) {
        pause();
    } else {
        std::this_thread::yield();
    }
}

void Barrier::wait() {
    if (workers_ == 1) return;
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers_) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
        return;
    }
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

void run_gang(int32_t threads, GangFunction function, const void* body) {
    if (threads <= 1) return run_alone(function, body);
    Pool& pool = Pool::instance();
    std::unique_lock<std::mutex> lock(pool.owner(), std::try_to_lock);
    if (!lock.owns_lock()) return run_alone(function, body);
    pool.run(threads, function, body);
}

int32_t run_tasks(int64_t tasks, int32_t threads, int64_t workspace_bytes, TaskFunction function, const void* body) {
    if (tasks <= 0) return SSMN_OK;
    const int64_t bytes = (std::max<int64_t>(workspace_bytes, 1) + 63) / 64 * 64;
    std::atomic<int64_t> next{0};
    TaskQueue queue{tasks, function, body, nullptr, bytes, &next};
    int32_t workers = static_cast<int32_t>(std::min<int64_t>(std::max<int32_t>(threads, 1), tasks));

    Pool& pool = Pool::instance();
    std::unique_lock<std::mutex> lock(pool.owner(), std::try_to_lock);
    if (lock.owns_lock()) {
        queue.workspace = static_cast<char*>(pool.workspace(workers * bytes));
        if (queue.workspace == nullptr) return SSMN_OUT_OF_MEMORY;
        if (workers > 1) {
            pool.run(workers, work_off, &queue);
        } else {
            run_alone(work_off, &queue);
        }
        pool.release(kKept);
        return SSMN_OK;
    }
    void* own = ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow);
    if (own == nullptr) return SSMN_OUT_OF_MEMORY;
    queue.workspace = static_cast<char*>(own);
    run_alone(work_off, &queue);
    ::operator delete(own, kAlignment);
    return SSMN_OK;
}

}  // namespace ssmn

extern "C" void ssmn_loaded_after_fork(void) {
#if !defined(_WIN32)
    ssmn::g_forked_before.store(true);
#endif
}

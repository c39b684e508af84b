#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace ssmn {

#define SSMN_DECLARE(path)         \
    namespace path {               \
    extern const Kernels kKernels; \
    }
#if defined(SSMN_X86_PATHS)
SSMN_DECLARE(avx512_bf16)
SSMN_DECLARE(avx512)
SSMN_DECLARE(avx2)
SSMN_DECLARE(x86_64_v2)
#endif
SSMN_DECLARE(portable)
#undef SSMN_DECLARE

namespace {

struct Path {
    const Kernels* kernels;
    bool runs_here;
};

// Best first. The last one always runs.
struct Paths {
#if defined(SSMN_X86_PATHS)
    static constexpr int count = 5;
#else
    static constexpr int count = 1;
#endif
    Path list[count];

    Paths() {
        Path* next = list;
#if defined(SSMN_X86_PATHS)
        __builtin_cpu_init();
        const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
        const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
        *next++ = {
            &avx512_bf16::kKernels,
            v4 && v3 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")};
        *next++ = {&avx512::kKernels, v4 && v3};
        *next++ = {&avx2::kKernels, v3};
        *next++ = {&x86_64_v2::kKernels, __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")};
#endif
        *next++ = {&portable::kKernels, true};
    }

    const Kernels* best() const {
        for (const Path& path : list)
            if (path.runs_here) return path.kernels;
        return nullptr;
    }

    const Kernels* named(const char* name) const {
        for (const Path& path : list)
            if (path.runs_here && std::strcmp(path.kernels->path, name) == 0) return path.kernels;
        return nullptr;
    }
};

const Paths& paths() {
    static const Paths all;
    return all;
}

const Kernels* first_choice() {
    const char* name = std::getenv("SSMN_KERNELS");
    const Kernels* asked = name == nullptr || *name == '\0' ? nullptr : paths().named(name);
    return asked == nullptr ? paths().best() : asked;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{first_choice()};
    return kernels;
}

}  // namespace

const Kernels& kernels() {
    return *chosen().load(std::memory_order_relaxed);
}

}  // namespace ssmn

using namespace ssmn;

extern "C" const char* ssmn_kernel_path(void) {
    return kernels().path;
}

extern "C" const char* ssmn_instruction_set(void) {
    return kernels().instruction_set;
}

extern "C" const char* ssmn_kernel_paths(void) {
    static const std::string names = [] {
        std::string text;
        for (const Path& path : paths().list)
            if (path.runs_here) text += (text.empty() ? "" : " ") + std::string(path.kernels->path);
        return text;
    }();
    return names.c_str();
}

extern "C" int32_t ssmn_use_kernel_path(const char* name) {
    const Kernels* asked = name == nullptr ? first_choice() : paths().named(name);
    if (asked == nullptr) return SSMN_UNKNOWN_PATH;
    chosen().store(asked, std::memory_order_relaxed);
    return SSMN_OK;
}

#include "memory.h"
#include "ssmn.h"

#define SSMN_TEXT_OF(x) #x
#define SSMN_TEXT(x) SSMN_TEXT_OF(x)

extern "C" const char* ssmn_version(void) {
    return SSMN_TEXT(SSMN_VERSION);
}

extern "C" const char* ssmn_compiler(void) {
#if defined(__clang__)
    return "Clang " SSMN_TEXT(__clang_major__) "." SSMN_TEXT(__clang_minor__) "." SSMN_TEXT(__clang_patchlevel__);
#elif defined(__GNUC__)
    return "GCC " SSMN_TEXT(__GNUC__) "." SSMN_TEXT(__GNUC_MINOR__) "." SSMN_TEXT(__GNUC_PATCHLEVEL__);
#elif defined(_MSC_VER)
    return "MSVC " SSMN_TEXT(_MSC_VER);
#else
    return "unknown";
#endif
}

extern "C" const char* ssmn_instruction_set(void) {
#if defined(SSMN_HAS_CLONES)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
    if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2)";
#endif
#if defined(__x86_64__) || defined(_M_X64)
    return "x86-64 (SSE2)";
#elif defined(__aarch64__) || defined(_M_ARM64)
    return "AArch64 (NEON)";
#else
    return "portable";
#endif
}

extern "C" int64_t ssmn_chunk_size(void) {
    return ssmn::kChunk;
}

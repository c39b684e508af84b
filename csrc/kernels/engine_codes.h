// Integer dot products of a panel: 16 rows times 4 neighbouring columns at once. Exact on every path.
#ifndef SSMN_ENGINE_CODES_H
#define SSMN_ENGINE_CODES_H

#include <cstdint>
#include <cstring>

#include "engine_wide.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#endif

namespace ssmn {
namespace SSMN_PATH {
namespace {

#if defined(__AVX512VNNI__)

typedef __m512i CodePart;
typedef __m512i CountPart;
constexpr int64_t kCodeParts = 1;
constexpr int32_t kInt8Offset = 128;

SSMN_INLINE CodePart load_codes(const uint8_t* from) {
    return _mm512_loadu_si512(from);
}
SSMN_INLINE CodePart lower_codes(CodePart x) {
    return _mm512_and_si512(x, _mm512_set1_epi8(15));
}
SSMN_INLINE CodePart upper_codes(CodePart x) {
    return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
}
// The instruction takes unsigned codes: int8 codes are moved up by kInt8Offset.
SSMN_INLINE CodePart int8_codes(CodePart x) {
    return _mm512_xor_si512(x, _mm512_set1_epi8(-128));
}
SSMN_INLINE CountPart broadcast_count(int32_t x) {
    return _mm512_set1_epi32(x);
}
SSMN_INLINE CountPart dot_unsigned(CountPart sum, CodePart codes, int32_t x) {
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x));
}
SSMN_INLINE CountPart dot_int8(CountPart sum, CodePart codes, int32_t x) {
    return dot_unsigned(sum, codes, x);
}

#elif defined(__AVX2__)

typedef __m256i CodePart;
typedef __m256i CountPart;
constexpr int64_t kCodeParts = 2;
constexpr int32_t kInt8Offset = 0;

SSMN_INLINE CodePart load_codes(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
SSMN_INLINE CodePart lower_codes(CodePart x) {
    return _mm256_and_si256(x, _mm256_set1_epi8(15));
}
SSMN_INLINE CodePart upper_codes(CodePart x) {
    return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
}
SSMN_INLINE CodePart int8_codes(CodePart x) {
    return x;
}
SSMN_INLINE CountPart broadcast_count(int32_t x) {
    return _mm256_set1_epi32(x);
}
SSMN_INLINE CountPart add_pairs(CountPart sum, CodePart positive, CodePart x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(positive, x), _mm256_set1_epi16(1)));
}
SSMN_INLINE CountPart dot_unsigned(CountPart sum, CodePart codes, int32_t x) {
    return add_pairs(sum, codes, _mm256_set1_epi32(x));
}
// |w| times (x with the sign of w), whose pairs fit 16 bits.
SSMN_INLINE CountPart dot_int8(CountPart sum, CodePart codes, int32_t x) {
    return add_pairs(sum, _mm256_abs_epi8(codes), _mm256_sign_epi8(_mm256_set1_epi32(x), codes));
}

#elif defined(__SSSE3__)

typedef __m128i CodePart;
typedef __m128i CountPart;
constexpr int64_t kCodeParts = 4;
constexpr int32_t kInt8Offset = 0;

SSMN_INLINE CodePart load_codes(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
SSMN_INLINE CodePart lower_codes(CodePart x) {
    return _mm_and_si128(x, _mm_set1_epi8(15));
}
SSMN_INLINE CodePart upper_codes(CodePart x) {
    return _mm_and_si128(_mm_srli_epi16(x, 4), _mm_set1_epi8(15));
}
SSMN_INLINE CodePart int8_codes(CodePart x) {
    return x;
}
SSMN_INLINE CountPart broadcast_count(int32_t x) {
    return _mm_set1_epi32(x);
}
SSMN_INLINE CountPart add_pairs(CountPart sum, CodePart positive, CodePart x) {
    return _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(positive, x), _mm_set1_epi16(1)));
}
SSMN_INLINE CountPart dot_unsigned(CountPart sum, CodePart codes, int32_t x) {
    return add_pairs(sum, codes, _mm_set1_epi32(x));
}
SSMN_INLINE CountPart dot_int8(CountPart sum, CodePart codes, int32_t x) {
    return add_pairs(sum, _mm_abs_epi8(codes), _mm_sign_epi8(_mm_set1_epi32(x), codes));
}

#else

typedef int8_t CodePart __attribute__((vector_size(16)));
typedef int32_t CountPart __attribute__((vector_size(16)));
constexpr int64_t kCodeParts = 4;
constexpr int32_t kInt8Offset = 0;

SSMN_INLINE CodePart load_codes(const uint8_t* from) {
    CodePart x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
SSMN_INLINE CodePart lower_codes(CodePart x) {
    return x & 15;
}
SSMN_INLINE CodePart upper_codes(CodePart x) {
    return (x >> 4) & 15;
}
SSMN_INLINE CodePart int8_codes(CodePart x) {
    return x;
}
SSMN_INLINE CountPart broadcast_count(int32_t x) {
    return CountPart{x, x, x, x};
}
SSMN_INLINE CountPart dot_int8(CountPart sum, CodePart codes, int32_t x) {
    int8_t inputs[4];
    std::memcpy(inputs, &x, sizeof inputs);
    for (int64_t row = 0; row < 4; ++row)
        for (int64_t c = 0; c < 4; ++c) sum[row] += static_cast<int32_t>(codes[row * 4 + c]) * inputs[c];
    return sum;
}
SSMN_INLINE CountPart dot_unsigned(CountPart sum, CodePart codes, int32_t x) {
    return dot_int8(sum, codes, x);
}

#endif

constexpr int64_t kCodePartBytes = 64 / kCodeParts;

struct Counts {
    CountPart part[kCodeParts];
};

SSMN_INLINE Counts counts_from(int32_t x) {
    Counts made;
    for (int64_t p = 0; p < kCodeParts; ++p) made.part[p] = broadcast_count(x);
    return made;
}

SSMN_INLINE Wide to_floats(const Counts& counts) {
    Wide made;
    static_assert(sizeof(made) == sizeof(counts), "sixteen of both");
    for (int64_t p = 0; p < kParts; ++p) {
        VecInt whole;
        std::memcpy(&whole, reinterpret_cast<const char*>(&counts) + p * sizeof whole, sizeof whole);
        made.part[p] = __builtin_convertvector(whole, Vec);
    }
    return made;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

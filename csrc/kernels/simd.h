// Vectors of floats as wide as the path's registers, in the vector types of GCC and Clang: the operators + - * / and
// comparisons work element by element, `a * b + c` becomes a fused multiply-add where there is one, and the same source
// is SSE, AVX2, AVX-512 or NEON. SSMN_LANES is the path's number of floats in a register.
#ifndef SSMN_SIMD_H
#define SSMN_SIMD_H

#include <cstdint>
#include <cstring>

#if defined(SSMN_BF16_DOT)
#include <immintrin.h>
#endif

namespace ssmn {
namespace SSMN_PATH {
namespace {

constexpr int64_t kLanes = SSMN_LANES;

typedef float Vec __attribute__((vector_size(4 * SSMN_LANES)));
typedef int32_t VecInt __attribute__((vector_size(4 * SSMN_LANES)));
typedef uint32_t VecBits __attribute__((vector_size(4 * SSMN_LANES)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * SSMN_LANES)));

#define SSMN_INLINE inline __attribute__((always_inline))

SSMN_INLINE Vec load(const float* from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

SSMN_INLINE void store(float* to, Vec x) {
    std::memcpy(to, &x, sizeof x);
}

SSMN_INLINE Vec broadcast(float x) {
    return x - Vec{};  // x - (+0) is x for every x, -0 and NaN included
}

SSMN_INLINE Vec select(VecInt condition, Vec yes, Vec no) {
    return condition ? yes : no;
}

SSMN_INLINE Vec maximum(Vec x, Vec y) {
    return x > y ? x : y;
}

SSMN_INLINE Vec minimum(Vec x, Vec y) {
    return x < y ? x : y;
}

// The lanes 0, 1, 2, ...
SSMN_INLINE VecInt lane_numbers() {
    VecInt x;
    for (int32_t i = 0; i < kLanes; ++i) x[i] = i;
    return x;
}

// In halves, so in the same order on every machine with as many lanes.
SSMN_INLINE float reduce_add(Vec x) {
    float lane[kLanes];
    store(lane, x);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
}

SSMN_INLINE float reduce_max(Vec x) {
    float lane[kLanes];
    store(lane, x);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t l = 0; l < half; ++l) lane[l] = lane[l] > lane[l + half] ? lane[l] : lane[l + half];
    return lane[0];
}

// exp(x) for x <= 0, within 2 units in the last place, 0 below -87; NaN stays NaN and exp(0) is exactly 1.
SSMN_INLINE Vec exp_nonpositive(Vec x) {
    const Vec lowest = broadcast(-87.0f);
    const Vec round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const Vec bounded = x < lowest ? lowest : x;
    const Vec shifted = bounded * 1.44269504088896341f + round;
    const Vec n = shifted - round;
    const Vec r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first one exact
    Vec poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
    poly = poly * r + 8.3334519073e-3f;
    poly = poly * r + 4.1665795894e-2f;
    poly = poly * r + 1.6666665459e-1f;
    poly = poly * r + 5.0000001201e-1f;
    poly = poly * (r * r) + r + 1.0f;
    const VecBits power = ((VecBits)shifted + 127u) << 23;  // the magic number's own low bits are zero
    return x < lowest ? Vec{} : poly * (Vec)power;
}

// log(x) for normal positive x, within 2 units in the last place; NaN stays NaN.
SSMN_INLINE Vec log_positive(Vec x) {
    const VecBits bits = (VecBits)x;
    const Vec half = (Vec)((bits & 0x7fffffu) | 0x3f000000u);  // the mantissa, in [1/2, 1)
    const VecInt low = half < 0.707106781186547524f;
    const Vec power = __builtin_convertvector((VecInt)(bits >> 23) - 126 + low, Vec);
    const Vec r = select(low, half + half, half) - 1.0f;
    const Vec square = r * r;
    Vec poly = r * 7.0376836292e-2f - 1.1514610310e-1f;
    poly = poly * r + 1.1676998740e-1f;
    poly = poly * r - 1.2420140846e-1f;
    poly = poly * r + 1.4249322787e-1f;
    poly = poly * r - 1.6668057665e-1f;
    poly = poly * r + 2.0000714765e-1f;
    poly = poly * r - 2.4999993993e-1f;
    poly = poly * r + 3.3333331174e-1f;
    poly = poly * r * square - power * 2.12194440e-4f - square * 0.5f;
    return x == x ? power * 0.693359375f + (r + poly) : x;
}

// bfloat16 is the upper half of a float. Widening is exact; narrowing rounds to nearest, ties to even, and keeps NaN.
SSMN_INLINE Vec load_bfloat16(const uint16_t* from) {
    HalfBits bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Vec)(__builtin_convertvector(bits, VecBits) << 16);
}

SSMN_INLINE HalfBits to_bfloat16(Vec x) {
#if defined(SSMN_BF16_DOT)
    return (HalfBits)_mm512_cvtneps_pbh((__m512)x);
#else
    const VecBits bits = (VecBits)x;
    const VecBits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return __builtin_convertvector((x == x ? rounded : bits | 0x400000u) >> 16, HalfBits);
#endif
}

SSMN_INLINE void store_bfloat16(uint16_t* to, Vec x) {
    const HalfBits bits = to_bfloat16(x);
    std::memcpy(to, &bits, sizeof bits);
}

SSMN_INLINE float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

SSMN_INLINE uint16_t narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return static_cast<uint16_t>((bits | 0x400000u) >> 16);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

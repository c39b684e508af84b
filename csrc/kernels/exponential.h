#ifndef SSMN_EXPONENTIAL_H
#define SSMN_EXPONENTIAL_H

#include <cstdint>
#include <cstring>

namespace ssmn {
namespace SSMN_PATH {
namespace {

// exp(x) for x <= 0, within 2 units in the last place, 0 below -87; NaN stays NaN and exp(0) is exactly 1. Free of
// branches, so that loops over it become vector code (the C library's exp does not).
inline float exp_nonpositive(float x) {
    constexpr float lowest = -87.0f;
    constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const float bounded = x < lowest ? lowest : x;
    const float shifted = bounded * 1.44269504088896341f + round;
    const float n = shifted - round;
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first one exact
    float poly = 1.9875691500e-4f;
    poly = poly * r + 1.3981999507e-3f;
    poly = poly * r + 8.3334519073e-3f;
    poly = poly * r + 4.1665795894e-2f;
    poly = poly * r + 1.6666665459e-1f;
    poly = poly * r + 5.0000001201e-1f;
    poly = poly * r * r + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;  // the magic number's own low bits are zero
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x < lowest ? 0.0f : poly * power;
}

}  // namespace
}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

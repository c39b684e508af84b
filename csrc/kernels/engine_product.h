// Products of an engine's packed matrices with a few vectors or a few hundred: the same sums in the same order for any
// number of them, so that a step, a batch of streams and a chunk of a sequence agree to the bit.
#ifndef SSMN_ENGINE_PRODUCT_H
#define SSMN_ENGINE_PRODUCT_H

#include <cstdint>

#include "engine_layout.h"
#include "ssmn.h"

namespace ssmn {
namespace SSMN_PATH {

enum class Then {
    kStore,  // y = W x + bias
    kAdd,    // y += W x
    kGate,   // y = silu(W_gate x) * (W_up x), of panels in turn
};

struct Target {
    float* y;
    int64_t stride;
    int64_t width;      // how many outputs there are
    const float* bias;  // [width] or null
    Then then;
};

// Fills in the codes, scales and sums of vector `row`, from its values; the padding of the values is zeros.
void encode(const Vectors& x, int64_t row);

// Panels [begin, end) of the matrix times the vectors [first, first + count). `begin` is even; target.y is that of
// vector `first` and of panel 0.
void multiply(
    const ssmn_matrix& matrix,
    const void* panels,
    const Vectors& x,
    int64_t first,
    int64_t count,
    int64_t begin,
    int64_t end,
    const Target& target);

}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

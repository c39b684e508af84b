// The loss of rows of logits and its gradient, in place, against a loop in double.
#include <cstring>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

uint16_t rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float widened(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

void run(int64_t rows, int64_t classes, int32_t format, double size, int32_t threads) {
    const bool is_low = format == SSMN_BFLOAT16;
    const std::string name = std::to_string(rows) + " rows of " + std::to_string(classes) + (is_low ? " low" : "");
    std::mt19937 random(3);
    const size_t count = static_cast<size_t>(rows * classes);
    Numbers z = normal(count, random);
    std::vector<int64_t> targets(static_cast<size_t>(rows));
    for (int64_t& target : targets) target = static_cast<int64_t>(random() % static_cast<uint64_t>(classes));
    Floats wide(count);
    std::vector<uint16_t> low(count);
    for (size_t i = 0; i < count; ++i) {
        const float x = static_cast<float>(z[i] * size);
        low[i] = rounded(x);
        wide[i] = x;
        z[i] = is_low ? widened(low[i]) : x;
    }
    const float scale = 0.25f;
    Floats losses = poisoned(static_cast<size_t>(rows));
    const ssmn_cross_entropy_call call{rows, classes, format, scale};
    void* logits = is_low ? static_cast<void*>(low.data()) : wide.data();
    check(ssmn_cross_entropy(&call, targets.data(), logits, losses.data(), threads) == SSMN_OK, name + ": status");
    double worst_loss = 0.0, worst = 0.0;
    for (int64_t n = 0; n < rows; ++n) {
        const double* row = z.data() + n * classes;
        const double top = *std::max_element(row, row + classes);
        double sum = 0.0;
        for (int64_t v = 0; v < classes; ++v) sum += std::exp(row[v] - top);
        const double loss = std::log(sum) + top - row[targets[static_cast<size_t>(n)]];
        worst_loss = std::max(worst_loss, std::abs(loss - losses[static_cast<size_t>(n)]) / std::max(1.0, loss));
        for (int64_t v = 0; v < classes; ++v) {
            const size_t at = static_cast<size_t>(n * classes + v);
            const double wanted =
                scale * (std::exp(row[v] - top) / sum - (v == targets[static_cast<size_t>(n)] ? 1.0 : 0.0));
            const double found = is_low ? widened(low[at]) : wide[at];
            worst = std::max(worst, std::abs(found - wanted) / (is_low ? std::abs(wanted) / 256 + 1e-7 : kTolerance));
        }
    }
    check(worst_loss < kTolerance, name + ": loss");
    check(worst <= 1.0, name + ": gradient");
}

void check_all() {
    for (const int32_t format : {SSMN_FLOAT32, SSMN_BFLOAT16})
        for (const int64_t classes : {1, 2, 15, 16, 17, 65, 1023, 4096, 5003})
            for (const int64_t rows : {0, 1, 7}) run(rows, classes, format, 3.0, rows == 7 ? 3 : 1);
    run(3, 300, SSMN_FLOAT32, 500.0, 1);
}

}  // namespace

int main() {
    return on_every_path("cross_entropy", check_all);
}

// The output memory of whole batches: every stream is one task, which walks through its open steps.
#include "output_memory.h"
#include "parallel.h"
#include "path.h"

namespace ssmn {
namespace SSMN_PATH {
namespace {

struct OutputArrays {
    const float* keys;
    const int64_t* tokens;
    const float *eta, *log_keep;
    const uint8_t *mask, *reset;
    float* logits;
};

void run_stream(
    const ssmn_output_call& call,
    const OutputArrays& arrays,
    int64_t first,
    int64_t last,
    const OutputStreamState& state,
    float* workspace) {
    OutputMemory memory(call.tokens, call.width, call.threshold, call.switch_share, workspace);
    OutputStep steps[kOutputChunk];
    int64_t count = 0;
    for (int64_t t = first; t < last; ++t) {
        if (arrays.reset != nullptr && arrays.reset[t] != 0) {
            memory.run(steps, count, state);
            count = 0;
            const auto clear = [](float* x, int64_t n) { std::memset(x, 0, sizeof(float) * static_cast<size_t>(n)); };
            clear(state.memory, call.tokens * call.width);
            clear(state.key, call.width);
            clear(state.prediction, call.tokens);
            clear(state.ratio, call.tokens);
            clear(state.trust, 1);
        }
        if (arrays.mask != nullptr && arrays.mask[t] == 0) continue;
        steps[count++] = {
            arrays.logits + t * call.tokens, arrays.keys + t * call.width, arrays.tokens[t], arrays.eta[t],
            arrays.log_keep[t]};
        if (count == kOutputChunk) {
            memory.run(steps, count, state);
            count = 0;
        }
    }
    memory.run(steps, count, state);
}

}  // namespace

int32_t output_memory(
    const ssmn_output_call* call,
    const float* keys,
    const int64_t* tokens,
    const float* eta,
    const float* log_keep,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* logits,
    const float* memory,
    const float* key,
    const float* prediction,
    const float* ratio,
    const float* trust,
    float* adapted,
    float* final_memory,
    float* final_key,
    float* final_prediction,
    float* final_ratio,
    float* final_trust,
    int32_t threads) {
    const int64_t V = call->tokens, D = call->width, T = call->steps, N = call->streams;
    const auto copy = [](float* to, const float* from, int64_t count) {
        if (count > 0) std::memcpy(to, from, sizeof(float) * static_cast<size_t>(count));
    };
    copy(adapted, logits, call->rows * T * V);
    copy(final_memory, memory, N * V * D);
    copy(final_key, key, N * D);
    copy(final_prediction, prediction, N * V);
    copy(final_ratio, ratio, N * V);
    copy(final_trust, trust, N);
    const OutputArrays arrays{keys, tokens, eta, log_keep, mask, reset, adapted};
    const double operations = static_cast<double>(call->rows * T) * static_cast<double>(V * D);
    const int64_t workspace = output_workspace_floats(V, D, call->threshold);
    return parallel_for(N, threads, operations, workspace, [&](int64_t n, float* space) {
        const OutputStreamState state{final_memory + n * V * D, D,
                                      final_key + n * D,        final_prediction + n * V,
                                      final_ratio + n * V,      final_trust + n};
        const int64_t first = cu_seqlens == nullptr ? n * T : cu_seqlens[n];
        const int64_t last = cu_seqlens == nullptr ? first + T : cu_seqlens[n + 1];
        run_stream(*call, arrays, first, last, state, space);
    });
}

}  // namespace SSMN_PATH
}  // namespace ssmn

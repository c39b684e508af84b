#include "dispatch.h"
#include "memory.h"
#include "pages.h"
#include "ssmn.h"

#define SSMN_TEXT_OF(x) #x
#define SSMN_TEXT(x) SSMN_TEXT_OF(x)

extern "C" const char* ssmn_version(void) {
    return SSMN_TEXT(SSMN_VERSION);
}

extern "C" int32_t ssmn_interface(void) {
    return SSMN_INTERFACE;
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

extern "C" int64_t ssmn_chunk_size(void) {
    return ssmn::kChunk;
}

using ssmn::kernels;

namespace {

// Bytes of all keys and of all values of a call.
struct RowBytes {
    int64_t keys, values;
};

RowBytes row_bytes(const ssmn_memory_call& call) {
    const int64_t rows = call.rows * call.steps * call.heads * (call.half ? 2 : 4);
    return {rows * call.key_width, rows * call.value_width};
}

}  // namespace

extern "C" int64_t ssmn_memory_window(void) {
    return ssmn::kMemoryWindow;
}

extern "C" int32_t ssmn_memory(
    const ssmn_memory_call* call,
    const void* q,
    const void* k,
    const void* v,
    const float* eta,
    const float* log_decay,
    const float* erase,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    void* o,
    void* u,
    float* states,
    float* final_state,
    int32_t threads) {
    const int64_t values = row_bytes(*call).values;
    ssmn::prefer_large_pages(o, values);
    ssmn::prefer_large_pages(u, values);
    return kernels().memory(
        call, q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, o, u, states, final_state,
        threads);
}

extern "C" int32_t ssmn_memory_backward(
    const ssmn_memory_call* call,
    const void* q,
    const void* k,
    const void* v,
    const float* eta,
    const float* log_decay,
    const float* erase,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    const float* states,
    const void* d_o,
    const void* d_u,
    const float* d_final_state,
    void* d_q,
    void* d_k,
    void* d_v,
    float* d_eta,
    float* d_log_decay,
    float* d_erase,
    float* d_initial_state,
    int32_t threads) {
    const auto [keys, values] = row_bytes(*call);
    ssmn::prefer_large_pages(d_q, keys);
    ssmn::prefer_large_pages(d_k, keys);
    ssmn::prefer_large_pages(d_v, values);
    return kernels().memory_backward(
        call, q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, states, d_o, d_u, d_final_state,
        d_q, d_k, d_v, d_eta, d_log_decay, d_erase, d_initial_state, threads);
}

extern "C" int32_t ssmn_output_memory(
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
    return kernels().output_memory(
        call, keys, tokens, eta, log_keep, mask, reset, cu_seqlens, logits, memory, key, prediction, ratio, trust,
        adapted, final_memory, final_key, final_prediction, final_ratio, final_trust, threads);
}

extern "C" int32_t ssmn_cross_entropy(
    const ssmn_cross_entropy_call* call, const int64_t* targets, void* logits, float* losses, int32_t threads) {
    return kernels().cross_entropy(call, targets, logits, losses, threads);
}

extern "C" int32_t ssmn_scan(
    const ssmn_scan_call* call,
    const float* a,
    const float* x,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    float* h,
    float* final_state,
    int32_t threads) {
    ssmn::prefer_large_pages(h, call->rows * call->steps * call->channels * 8);
    return kernels().scan(call, a, x, mask, reset, cu_seqlens, initial_state, h, final_state, threads);
}

extern "C" int32_t ssmn_scan_backward(
    const ssmn_scan_call* call,
    const float* a,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    const float* h,
    const float* d_h,
    const float* d_final_state,
    float* d_a,
    float* d_x,
    float* d_initial_state,
    int32_t threads) {
    const int64_t bytes = call->rows * call->steps * call->channels * 8;
    if (!call->shared) ssmn::prefer_large_pages(d_a, bytes);
    ssmn::prefer_large_pages(d_x, bytes);
    return kernels().scan_backward(
        call, a, mask, reset, cu_seqlens, initial_state, h, d_h, d_final_state, d_a, d_x, d_initial_state, threads);
}

extern "C" int32_t ssmn_ntm(
    const ssmn_ntm_call* call,
    const float* driven,
    const float* recurrent,
    const float* emit,
    const float* emit_bias,
    const uint8_t* mask,
    const uint8_t* reset,
    const float* memory,
    const float* weighting,
    const float* hidden,
    const float* cell,
    const float* read,
    float* controls,
    float* reads,
    float* final_memory,
    float* final_weighting,
    float* final_cell,
    float* memories,
    float* weightings,
    float* cells,
    float* gates,
    float* active,
    int32_t threads) {
    return kernels().ntm(
        call, driven, recurrent, emit, emit_bias, mask, reset, memory, weighting, hidden, cell, read, controls, reads,
        final_memory, final_weighting, final_cell, memories, weightings, cells, gates, active, threads);
}

extern "C" int32_t ssmn_ntm_backward(
    const ssmn_ntm_call* call,
    const float* recurrent,
    const float* emit,
    const uint8_t* mask,
    const uint8_t* reset,
    const float* memory,
    const float* weighting,
    const float* cell,
    const float* memories,
    const float* weightings,
    const float* cells,
    const float* gates,
    const float* active,
    const float* d_controls,
    const float* d_reads,
    float* d_driven,
    float* d_emitted,
    float* d_memory,
    float* d_weighting,
    float* d_cell,
    float* d_hidden,
    float* d_read,
    int32_t threads) {
    return kernels().ntm_backward(
        call, recurrent, emit, mask, reset, memory, weighting, cell, memories, weightings, cells, gates, active,
        d_controls, d_reads, d_driven, d_emitted, d_memory, d_weighting, d_cell, d_hidden, d_read, threads);
}

extern "C" int32_t ssmn_matrix_product(
    int64_t format,
    int64_t rows,
    int64_t columns,
    const void* packed,
    int64_t count,
    const float* x,
    float* y,
    int32_t threads) {
    return kernels().matrix_product(format, rows, columns, packed, count, x, y, threads);
}

extern "C" int32_t ssmn_engine_run(ssmn_engine* engine, const ssmn_engine_call* call) {
    return kernels().engine_run(engine, call);
}

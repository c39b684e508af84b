/*
 * The SSMN kernels: the C interface and its manual.
 *
 * Arrays. Every array is dense, row-major, and listed with its axes; `float` is IEEE binary32. The letters:
 * B rows, T steps, H heads, K key width, V value width, N streams, C = ssmn_chunk_size(), NC = ceil(T / C);
 * in the attention Hq query heads, Hkv key/value heads (Hkv divides Hq), D head width, W window.
 * Any of B, T and N may be 0, and an array without elements may be NULL. Inputs are finite.
 *
 * Ownership. The caller owns every array; nothing is kept after a call. Outputs do not overlap inputs or each
 * other, and every element of an output is written. Arguments are not checked: that is the caller's duty.
 *
 * Threads. `threads` (at least 1) is the largest number of threads that one call may use, its own included; small
 * calls use fewer. The library's other threads are started when first needed and sleep between calls; a forked child
 * starts its own. Calls may run at the same time as long as their outputs do not overlap; the threads then belong to
 * the first, and the others run on their callers' alone. Results do not depend on `threads`.
 *
 * Status. Every kernel returns SSMN_OK, or SSMN_OUT_OF_MEMORY when its workspace cannot be allocated; the outputs
 * are then unspecified.
 */
#ifndef SSMN_H
#define SSMN_H

#include <stdint.h>

#if defined(_WIN32)
#if defined(SSMN_BUILD)
#define SSMN_API __declspec(dllexport)
#else
#define SSMN_API __declspec(dllimport)
#endif
#else
#define SSMN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { SSMN_OK = 0, SSMN_OUT_OF_MEMORY = 1, SSMN_UNKNOWN_PATH = 2 };

/* The library's version, which is the package's. */
SSMN_API const char* ssmn_version(void);

/* The compiler that built the library, e.g. "GCC 12.2.0". */
SSMN_API const char* ssmn_compiler(void);

/*
 * Paths. The library holds its kernels once per instruction set and uses the best that the processor has, or the one
 * that the environment variable SSMN_KERNELS names: avx512-bf16, avx512, avx2, x86-64-v2 or portable (all that a
 * compiler for ARM is given, which makes NEON of it). A name that is unknown or cannot run here is not used.
 */

/* The path in use, e.g. "avx512". */
SSMN_API const char* ssmn_kernel_path(void);

/* Its instruction set in words, e.g. "x86-64-v4 (AVX-512)". */
SSMN_API const char* ssmn_instruction_set(void);

/* The paths that can run on this machine, best first, with a space between them. */
SSMN_API const char* ssmn_kernel_paths(void);

/* Uses another path from now on; NULL means what SSMN_KERNELS says, else the best. No kernel may be running.
 * Returns SSMN_UNKNOWN_PATH, and changes nothing, if no such path can run here. */
SSMN_API int32_t ssmn_use_kernel_path(const char* name);

/* C, the number of steps between two stored states of the memory. */
SSMN_API int64_t ssmn_chunk_size(void);

/*
 * The synaptic memory.
 *
 * One head's memory is S [K, V]. A step decays it, erases along its key and writes:
 *
 *     S_t = a_t (S_{t-1} - e_t k_t k_t^T S_{t-1}) + w_t k_t v_t^T,    a_t = exp(log_keep_t)
 *         = a_t S_{t-1} + k_t u_t^T,                                  u_t = w_t v_t - a_t e_t S_{t-1}^T k_t
 *     o_t = S_t^T q_t
 *
 * ssmn_memory_write computes u and the states; ssmn_memory_read computes o for any queries from them.
 *
 * The two tables cut the rows into streams:
 *
 *     begin [B, T]  SSMN_GO_ON: go on from the step before (from zeros at the row's first step);
 *                   SSMN_BEGIN_FRESH: start from zeros at this step; n >= 0: start from initial_state[n].
 *     end [B, T]    SSMN_GO_ON, or n >= 0: final_state[n] is the state after this step.
 *
 * Each n occurs at most once in begin and at most once in end. final_state[n] of an n that is not in `end` (a stream
 * without steps) is initial_state[n].
 *
 * log_keep is at most 0. `erase` may be NULL, which means zeros everywhere and saves the triangular solve.
 */
enum { SSMN_GO_ON = -1, SSMN_BEGIN_FRESH = -2 };

typedef struct ssmn_memory_sizes {
    int64_t rows;        /* B */
    int64_t steps;       /* T */
    int64_t heads;       /* H */
    int64_t key_width;   /* K */
    int64_t value_width; /* V */
    int64_t streams;     /* N */
} ssmn_memory_sizes;

SSMN_API int32_t ssmn_memory_write(
    const ssmn_memory_sizes* sizes,
    const float* k,             /* [B, T, H, K] */
    const float* v,             /* [B, T, H, V] */
    const float* write,         /* [B, T, H] w */
    const float* erase,         /* [B, T, H] e, or NULL */
    const float* log_keep,      /* [B, T, H] log a */
    const int32_t* begin,       /* [B, T] */
    const int32_t* end,         /* [B, T] */
    const float* initial_state, /* [N, H, K, V] */
    float* u,                   /* out [B, T, H, V] */
    float* chunk_states,        /* out [B, NC, H, K, V]: the state after step c C - 1, zeros for c = 0 */
    float* final_state,         /* out [N, H, K, V] */
    int32_t threads);

/* Gradients of ssmn_memory_write. A cotangent d_u, d_chunk_states or d_final_state may be NULL, which means zeros;
 * d_erase is NULL if and only if erase is. u and chunk_states are what ssmn_memory_write computed. */
SSMN_API int32_t ssmn_memory_write_backward(
    const ssmn_memory_sizes* sizes,
    const float* k,
    const float* v,
    const float* write,
    const float* erase,
    const float* log_keep,
    const int32_t* begin,
    const int32_t* end,
    const float* initial_state,
    const float* u,
    const float* chunk_states,
    const float* d_u,
    const float* d_chunk_states,
    const float* d_final_state,
    float* d_k, /* out, and so are all below */
    float* d_v,
    float* d_write,
    float* d_erase,
    float* d_log_keep,
    float* d_initial_state,
    int32_t threads);

/* o from the u and chunk_states of ssmn_memory_write, called with the same k, log_keep, begin and initial_state. */
SSMN_API int32_t ssmn_memory_read(
    const ssmn_memory_sizes* sizes,
    const float* q,             /* [B, T, H, K] */
    const float* k,             /* [B, T, H, K] */
    const float* u,             /* [B, T, H, V] */
    const float* log_keep,      /* [B, T, H] */
    const int32_t* begin,       /* [B, T] */
    const float* initial_state, /* [N, H, K, V] */
    const float* chunk_states,  /* [B, NC, H, K, V] */
    float* o,                   /* out [B, T, H, V] */
    int32_t threads);

SSMN_API int32_t ssmn_memory_read_backward(
    const ssmn_memory_sizes* sizes,
    const float* q,
    const float* k,
    const float* u,
    const float* log_keep,
    const int32_t* begin,
    const float* initial_state,
    const float* chunk_states,
    const float* d_o, /* [B, T, H, V] */
    float* d_q,       /* out, and so are all below */
    float* d_k,
    float* d_u,
    float* d_log_keep,
    float* d_initial_state,
    float* d_chunk_states,
    int32_t threads);

/*
 * Softmax attention to the last W steps.
 *
 * A stream is a row of B, or with cu_seqlens a segment of the only row (B = 1): N streams with a ring each. Its steps
 * are numbered by their position, which goes on from `position`; a step whose mask is 0 has none, is seen by nobody and
 * puts out 0. A query sees the keys of its own step and of the W - 1 positions before it; query head h uses key/value
 * head h / (Hq / Hkv). Before a step whose `reset` is not 0 (closed or not) the ring is empty and the position 0.
 *
 * rope_theta > 0 turns queries and keys (D even): the pair (i, i + D / 2) by the angle position * rope_theta^(-2i / D),
 * computed in double. `sinks`, if not NULL, adds exp(sinks[h]) to the softmax denominator.
 *
 * The ring keeps the last W - 1 positions, position p in the slot p mod (W - 1): keys already turned, values, and zeros
 * in slots that no step has reached. Slots that `position` says are not filled are not read.
 *
 * q, k, v and o, and their gradients, have one type: float, or bfloat16 (the upper half of a float), which is computed
 * with float sums; products of bfloat16 round turned queries, turned keys, weights and the gradients of scores to it.
 */
enum { SSMN_FLOAT32 = 0, SSMN_BFLOAT16 = 1 };

typedef struct ssmn_window_sizes {
    int64_t rows;        /* B */
    int64_t steps;       /* T */
    int64_t query_heads; /* Hq */
    int64_t key_heads;   /* Hkv */
    int64_t width;       /* D */
    int64_t streams;     /* N: B without cu_seqlens */
    int64_t window;      /* W, at least 1 */
} ssmn_window_sizes;

SSMN_API int32_t ssmn_window_attention(
    const ssmn_window_sizes* sizes,
    int32_t type,              /* SSMN_FLOAT32 or SSMN_BFLOAT16: of q, k, v and o */
    const void* q,             /* [B, T, Hq, D] */
    const void* k,             /* [B, T, Hkv, D] */
    const void* v,             /* [B, T, Hkv, D] */
    const float* ring_keys,    /* [N, W - 1, Hkv, D]; with the next two NULL if nothing came before */
    const float* ring_values,  /* [N, W - 1, Hkv, D] */
    const int64_t* position,   /* [N], not negative */
    const uint8_t* mask,       /* [B, T], 0 = closed, or NULL */
    const uint8_t* reset,      /* [B, T], or NULL */
    const int64_t* cu_seqlens, /* [N + 1] from 0 to T, not falling, or NULL */
    const float* sinks,        /* [Hq] or NULL */
    float scale,               /* factor on q k^T, greater than 0 */
    double rope_theta,         /* 0: nothing turns */
    void* o,                   /* out [B, T, Hq, D] */
    float* lse,                /* out [B, T, Hq]: log of the softmax denominator, -infinity in closed steps */
    float* final_keys,         /* out [N, W - 1, Hkv, D]; NULL, with the next two, if nobody asks */
    float* final_values,       /* out [N, W - 1, Hkv, D] */
    int64_t* final_position,   /* out [N] */
    int32_t threads);

/* Gradients of ssmn_window_attention; o and lse are what it computed. d_final_keys and d_final_values may be NULL,
 * which means zeros; d_ring_keys and d_ring_values may be NULL if nobody asks; d_sinks is NULL if and only if sinks is.
 */
SSMN_API int32_t ssmn_window_attention_backward(
    const ssmn_window_sizes* sizes,
    int32_t type,
    const void* q,
    const void* k,
    const void* v,
    const float* ring_keys,
    const float* ring_values,
    const int64_t* position,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* sinks,
    float scale,
    double rope_theta,
    const void* o,
    const float* lse,
    const void* d_o,             /* [B, T, Hq, D] */
    const float* d_final_keys,   /* [N, W - 1, Hkv, D] */
    const float* d_final_values, /* [N, W - 1, Hkv, D] */
    void* d_q,                   /* out, and so are all below */
    void* d_k,
    void* d_v,
    float* d_ring_keys,
    float* d_ring_values,
    float* d_sinks,
    int32_t threads);

#ifdef __cplusplus
}
#endif

#endif

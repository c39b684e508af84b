/*
 * The SSMN kernels: the C interface and its manual.
 *
 * Arrays. Every array is dense, row-major, and listed with its axes; `float` is IEEE binary32. The letters:
 * B rows, T steps, H heads, K key width, V value width, N streams, C = ssmn_chunk_size(), NC = ceil(T / C);
 * in the scan C channels; in the attention Hq query heads, Hkv key/value heads (Hkv divides Hq), D head width, W
 * window. Any of B, T and N may be 0, and an array without elements may be NULL. Inputs are finite.
 *
 * Ownership. The caller owns every array; nothing is kept after a call. Outputs do not overlap inputs or each
 * other, and every element of an output is written. Arguments are not checked: that is the caller's duty.
 *
 * Threads. `threads` (at least 1) is the largest number of threads that one call may use, its own included; small
 * calls use fewer. The library's other threads are started when first needed and sleep between calls; a forked child
 * starts its own. Calls may run at the same time as long as their outputs do not overlap; the threads then belong to
 * the first, and the others run on their callers' alone. Results do not depend on `threads`. If an OpenMP runtime is
 * loaded in the process (torch's, say), its threads are borrowed, because they would spin beside the library's own.
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

enum {
    SSMN_OK = 0,
    SSMN_OUT_OF_MEMORY = 1,
    SSMN_UNKNOWN_PATH = 2,
    SSMN_BUSY = 3,
    SSMN_NOT_FINITE = 4,
    SSMN_UNKNOWN_TOKEN = 5
};

/* How numbers are stored: float, bfloat16 (the upper half of a float), and the engine's formats of a weight. */
enum { SSMN_FLOAT32 = 0, SSMN_BFLOAT16 = 1, SSMN_INT8 = 2, SSMN_INT4 = 3 };

/* The library's version, which is the package's. */
SSMN_API const char* ssmn_version(void);

/* The number of this interface: raised whenever a structure or the arguments of a function here change. */
#define SSMN_INTERFACE 3
SSMN_API int32_t ssmn_interface(void);

/* The compiler that built the library, e.g. "GCC 12.2.0". */
SSMN_API const char* ssmn_compiler(void);

/* To be called once by a process that was forked from one whose OpenMP threads may have run, before any kernel, if the
 * library was not yet loaded when it was forked: those threads stayed behind, and OpenMP would wait for them. */
SSMN_API void ssmn_loaded_after_fork(void);

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

/* C, the number of steps of the memory that are worked on together, at most. */
SSMN_API int64_t ssmn_chunk_size(void);

/*
 * The synaptic memory: every step is written and read in one pass, and nothing as long as the sequence is kept but what
 * is returned.
 *
 * One head's memory is S [K, V]. A step decays it, erases along its key and writes:
 *
 *     S_t = a_t (S_{t-1} - e_t k_t k_t^T S_{t-1}) + w_t k_t v_t^T,    a_t = exp(log_decay_t)
 *         = a_t S_{t-1} + k_t u_t^T,                                  u_t = w_t v_t - a_t e_t S_{t-1}^T k_t
 *     o_t = S_t^T q_t
 *
 *     rule             w_t      e_t
 *     SSMN_HEBBIAN     eta_t    0
 *     SSMN_DELTA       eta_t    eta_t
 *     SSMN_ERASE       eta_t    erase_t
 *
 * A log_decay below -1000 counts as -1000. At a closed step (mask 0) w, e and log a are 0 whatever the arrays say, and
 * no work is done for it but its read; the gradients of its k, v and coefficients are 0.
 *
 * Row b is stream b (N = B); or, with cu_seqlens, B = 1 and stream n has the steps [cu_seqlens[n], cu_seqlens[n + 1]).
 * A stream begins from initial_state[n] (NULL: from zeros); final_state[n] is the state after its last step. The state
 * is zero before a step whose reset is 1.
 *
 * A memory that is read more than once is written by a call without q and o that returns u, and read by any number of
 * calls with the rule SSMN_HEBBIAN, u in place of v, and no eta; all else is the same in these calls.
 *
 * P = ssmn_memory_window(); NP = max(0, ceil(T / P) - 1).
 */
enum { SSMN_HEBBIAN = 0, SSMN_DELTA = 1, SSMN_ERASE = 2 };

typedef struct ssmn_memory_call {
    int64_t rows;        /* B */
    int64_t steps;       /* T */
    int64_t heads;       /* H */
    int64_t key_width;   /* K */
    int64_t value_width; /* V */
    int64_t streams;     /* N */
    int32_t half; /* q, k, v, o, u and their gradients are bfloat16 (the upper half of a float) if 1, float if 0 */
    int32_t rule;
    int32_t mask_heads; /* 1, or H for a mask of every head */
} ssmn_memory_call;

/* P, the number of steps between two states that ssmn_memory stores. */
SSMN_API int64_t ssmn_memory_window(void);

SSMN_API int32_t ssmn_memory(
    const ssmn_memory_call* call,
    const void* q,              /* [B, T, H, K], or NULL: nothing is read */
    const void* k,              /* [B, T, H, K] */
    const void* v,              /* [B, T, H, V] */
    const float* eta,           /* [B, T, H], or NULL (with SSMN_HEBBIAN) for ones */
    const float* log_decay,     /* [B, T, H], at most 0 */
    const float* erase,         /* [B, T, H] if the rule is SSMN_ERASE, else NULL */
    const uint8_t* mask,        /* [B, T] or [B, T, H], 1 = open, 0 = closed; NULL = all open */
    const uint8_t* reset,       /* [B, T], 0 or 1; NULL = none */
    const int64_t* cu_seqlens,  /* [N + 1] or NULL */
    const float* initial_state, /* [N, H, K, V] or NULL */
    void* o,                    /* out [B, T, H, V]; NULL if and only if q is */
    void* u,                    /* out [B, T, H, V], zeros at closed steps; NULL if it is not wanted */
    float* states,              /* out [B, NP, H, K, V]: the states after the steps P - 1, 2 P - 1, .. */
    float* final_state,         /* out [N, H, K, V], or NULL if it is not wanted */
    int32_t threads);

/* Gradients of ssmn_memory. d_u and d_final_state may be NULL, which means zeros; d_o and d_q are NULL if and only if q
 * is, d_eta if and only if eta is, d_initial_state if and only if initial_state is; d_erase is NULL unless the rule is
 * SSMN_ERASE. */
SSMN_API int32_t ssmn_memory_backward(
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
    const void* d_o,            /* [B, T, H, V] or NULL */
    const void* d_u,            /* [B, T, H, V] or NULL */
    const float* d_final_state, /* [N, H, K, V] or NULL */
    void* d_q,                  /* out, and so are all below */
    void* d_k,
    void* d_v,
    float* d_eta,
    float* d_log_decay,
    float* d_erase,
    float* d_initial_state,
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

/*
 * The output memory M [V, D] of a stream over V tokens, which learns from prediction errors. A step that comes with
 * the token y, after a step with key k' and prediction p' (zeros before the first one):
 *
 *     M = exp(log_keep) M - eta e k'^T,  e = shrink(p' - onehot(y))     p = softmax(logits + M k)
 *     s = share(s + r'[y]) if eta > 0,  r = log p - log softmax(logits)
 *     adapted = logits + softplus(s + r) - softplus(s)
 *
 * shrink(e) = sign(e) max(|e| - threshold, 0). The last line is the logarithm of w p + (1 - w) softmax(logits), but for
 * a constant, with s = log(w / (1 - w)); share(s) has w = (1 - switch) w + switch / 2, of s held in [-80, 80]. A step
 * whose mask is 0 changes nothing, and its adapted logits are the given ones; before a step whose `reset` is not 0
 * (closed or not) the state is zeros. Streams as in ssmn_memory. The steps are exact, and are computed in chunks whose
 * bounds change results by rounding alone. Keys are of unit length, log_keep is at most 0.
 */
typedef struct ssmn_output_call {
    int64_t rows;       /* B */
    int64_t steps;      /* T */
    int64_t tokens;     /* V, at least 1 */
    int64_t width;      /* D */
    int64_t streams;    /* N */
    float threshold;    /* in [0, 1) */
    float switch_share; /* in [0, 1] */
} ssmn_output_call;

SSMN_API int32_t ssmn_output_memory(
    const ssmn_output_call* call,
    const float* keys,         /* [B, T, D] */
    const int64_t* tokens,     /* [B, T] */
    const float* eta,          /* [B, T] */
    const float* log_keep,     /* [B, T] */
    const uint8_t* mask,       /* [B, T], 0 = closed; NULL = all open */
    const uint8_t* reset,      /* [B, T], or NULL */
    const int64_t* cu_seqlens, /* [N + 1] or NULL */
    const float* logits,       /* [B, T, V] */
    const float* memory,       /* [N, V, D] */
    const float* key,          /* [N, D] k' */
    const float* prediction,   /* [N, V] p' */
    const float* ratio,        /* [N, V] r' */
    const float* trust,        /* [N] s */
    float* adapted,            /* out [B, T, V] */
    float* final_memory,       /* out [N, V, D] */
    float* final_key,          /* out [N, D] */
    float* final_prediction,   /* out [N, V] */
    float* final_ratio,        /* out [N, V] */
    float* final_trust,        /* out [N] */
    int32_t threads);

/*
 * Cross-entropy of N rows of V logits z, in nats, and its gradient, which takes the place of the logits:
 *
 *     loss = log sum exp(z) - z[target],    z becomes scale (softmax(z) - onehot(target))
 */
typedef struct ssmn_cross_entropy_call {
    int64_t rows;    /* N */
    int64_t classes; /* V */
    int32_t format;  /* of the logits: SSMN_FLOAT32 or SSMN_BFLOAT16 */
    float scale;
} ssmn_cross_entropy_call;

SSMN_API int32_t ssmn_cross_entropy(
    const ssmn_cross_entropy_call* call,
    const int64_t* targets, /* [N], in [0, V) */
    void* logits,           /* in and out [N, V] */
    float* losses,          /* out [N] */
    int32_t threads);

/*
 * The diagonal complex recurrence of linear recurrent units, C channels wide:
 *
 *     h_t = a_t h_{t-1} + x_t    (complex, channel by channel)
 *
 * A row holds the real parts of its channels, then the imaginary ones. At a closed step (mask 0) h_t = h_{t-1} whatever
 * the arrays say; h_{t-1} is 0 at a step whose reset is 1 (closed or not). Streams as in ssmn_memory. Nothing is
 * divided or exponentiated, so |a_t| <= 1 is all that a long stream needs.
 */
typedef struct ssmn_scan_call {
    int64_t rows;     /* B */
    int64_t steps;    /* T */
    int64_t channels; /* C */
    int64_t streams;  /* N */
    int32_t shared;   /* a is one row for all steps of all streams if 1, a row per step if 0 */
} ssmn_scan_call;

SSMN_API int32_t ssmn_scan(
    const ssmn_scan_call* call,
    const float* a,             /* [B, T, 2, C], or [2, C] if shared */
    const float* x,             /* [B, T, 2, C] */
    const uint8_t* mask,        /* [B, T], 0 = closed; NULL = all open */
    const uint8_t* reset,       /* [B, T], or NULL */
    const int64_t* cu_seqlens,  /* [N + 1] or NULL */
    const float* initial_state, /* [N, 2, C], or NULL for zeros */
    float* h,                   /* out [B, T, 2, C] */
    float* final_state,         /* out [N, 2, C], or NULL if it is not wanted */
    int32_t threads);

/* Gradients of ssmn_scan; h is what it computed. d_final_state may be NULL, which means zeros; d_initial_state is NULL
 * if and only if initial_state is. */
SSMN_API int32_t ssmn_scan_backward(
    const ssmn_scan_call* call,
    const float* a,
    const uint8_t* mask,
    const uint8_t* reset,
    const int64_t* cu_seqlens,
    const float* initial_state,
    const float* h,
    const float* d_h,           /* [B, T, 2, C] */
    const float* d_final_state, /* [N, 2, C] or NULL */
    float* d_a,                 /* out [B, T, 2, C]; if shared [N, 2, C], the part of every stream */
    float* d_x,                 /* out [B, T, 2, C] */
    float* d_initial_state,     /* out [N, 2, C] or NULL */
    int32_t threads);

/* The Neural Turing Machine (ssmn/relatives/ntm.py has the equations): at every step the controller sees the input and
 * what was read last; the heads take their places by the memory before the step, the write heads write, the read heads
 * read. Heads: H = R + write heads, read heads first. G = 4 C gates in the order in, keep, out, new of an LSTM, or C
 * numbers through tanh. The controller emits E = H M + 2 M write heads + H (2 range + 4) numbers: keys, add vectors,
 * erase vectors, gates, strengths, sharpenings, shifts. Memories are stored by columns. Without an LSTM hidden, cell
 * and what belongs to them have no elements. A closed step changes nothing. */
typedef struct ssmn_ntm_call {
    int64_t streams;    /* B */
    int64_t steps;      /* T */
    int64_t slots;      /* N */
    int64_t width;      /* M */
    int64_t controls;   /* C */
    int64_t read_heads; /* R */
    int64_t write_heads;
    int64_t shift_range; /* a head moves by at most so many rows */
    int32_t is_lstm;
    int32_t frozen; /* 1 = nothing is written */
} ssmn_ntm_call;

SSMN_API int32_t ssmn_ntm(
    const ssmn_ntm_call* call,
    const float* driven,    /* [B, T, G], what the input says to the controller */
    const float* recurrent, /* [R M + C, G]; [R M, G] without an LSTM: what was read and its own output say to it */
    const float* emit,      /* [C, E] */
    const float* emit_bias, /* [E] */
    const uint8_t* mask,    /* [B, T], 0 = closed; NULL = all open */
    const uint8_t* reset,   /* [B, T], or NULL */
    const float* memory,    /* [B, M, N] */
    const float* weighting, /* [B, H, N], where the heads were */
    const float* hidden,    /* [B, C] */
    const float* cell,      /* [B, C] */
    const float* read,      /* [B, R M], what was read last */
    float* controls,        /* out [B, T, C]; at a closed step the LSTM's last output, or 0 */
    float* reads,           /* out [B, T, R M]; at a closed step what was read last */
    float* final_memory,    /* out [B, M, N] */
    float* final_weighting, /* out [B, H, N] */
    float* final_cell,      /* out [B, C] */
    float* memories,        /* out [B, T, M, N]: this and what follows for the gradients, or all of them NULL */
    float* weightings,      /* out [B, T, H, N] */
    float* cells,           /* out [B, T, C] */
    float* gates,           /* out [B, T, G] */
    float* active,          /* out [B, T, E] */
    int32_t threads);

/* Gradients of ssmn_ntm, whose arrays it takes. */
SSMN_API int32_t ssmn_ntm_backward(
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
    const float* d_controls, /* [B, T, C] */
    const float* d_reads,    /* [B, T, R M] */
    float* d_driven,         /* out [B, T, G] */
    float* d_emitted,        /* out [B, T, E]; the gradient of emit is the sum of controls x d_emitted */
    float* d_memory,         /* [B, M, N]; in: the gradient of final_memory, as for the next two */
    float* d_weighting,      /* [B, H, N] */
    float* d_cell,           /* [B, C] */
    float* d_hidden,         /* out [B, C] */
    float* d_read,           /* out [B, R M] */
    int32_t threads);

/*
 * The stream engine: a whole model in one arena, and any number of streams that it steps in place.
 *
 * The caller fills the first part of an ssmn_engine and of its layers, calls ssmn_engine_layout, allocates the arena
 * and the streams (both zeroed, the arena aligned to 64 bytes), packs the weights and calls ssmn_engine_run. Nothing
 * has to be freed but what the caller allocated. Fresh streams are all zeros at position 0.
 *
 * Matrices are stored in panels of 16 rows; a format is one of
 *
 *     SSMN_FLOAT32, SSMN_BFLOAT16    as they are; sums in float32
 *     SSMN_INT8                      scale * code, codes -127 .. 127, a bfloat16 scale per row and 32 columns
 *     SSMN_INT4                      the same with codes -8 .. 7
 *
 * With the last two, inputs are rounded to int8 with a float32 scale per 32 columns, and the dot products of 32 codes
 * are exact integers. A row's result does not depend on what else is computed in the same call.
 *
 * A part of a matrix (q, k and v of one layer, say) begins at a multiple of 16 rows.
 */

typedef struct ssmn_matrix {
    int64_t rows;
    int64_t columns;
    int64_t format;
    int64_t offset; /* bytes from the start of the arena */
} ssmn_matrix;

/* Bytes of a matrix of this size. */
SSMN_API int64_t ssmn_matrix_bytes(int64_t format, int64_t rows, int64_t columns);

/* Packs weights [rows, columns], rounding them to the nearest that the format has, into the panels first_panel,
 * first_panel + panel_step, ... of the matrix that begins at `packed`. */
SSMN_API void ssmn_matrix_pack(
    int64_t format,
    int64_t rows,
    int64_t columns,
    const float* weights,
    int64_t first_panel,
    int64_t panel_step,
    void* packed);

/* What the packed matrix holds, as floats [rows, columns]. */
SSMN_API void ssmn_matrix_unpack(int64_t format, int64_t rows, int64_t columns, const void* packed, float* weights);

/* y [count, rows] = x [count, columns] times the transposed matrix. */
SSMN_API int32_t ssmn_matrix_product(
    int64_t format,
    int64_t rows,
    int64_t columns,
    const void* packed,
    int64_t count,
    const float* x,
    float* y,
    int32_t threads);

/* Offsets are bytes from the start of the arena; vectors are float unless said. D is the model's width, H the number
 * of memory heads, R the chat's rounds. A matrix without rows is absent, and so is an offset of 0. */
typedef struct ssmn_engine_layer {
    int64_t plastic; /* by the caller: 0 = window attention, 1 = synaptic memory */
    /* By ssmn_engine_layout: */
    ssmn_matrix input;    /* q, k, v of the attention; q, v, gate of the memory */
    ssmn_matrix key;      /* k of the memory */
    ssmn_matrix gate;     /* importance, erasure (rule erase), decay, mix (chat): float32, parts not padded */
    ssmn_matrix key_gate; /* importance, erasure of the previous vector: the same */
    ssmn_matrix output;
    ssmn_matrix expand; /* the feed-forward's gate and up, panel by panel in turn */
    ssmn_matrix contract;
    int64_t mixer_norm;      /* [D] */
    int64_t ffn_norm;        /* [D] */
    int64_t sinks;           /* [Hq] */
    int64_t gate_bias;       /* [D] */
    int64_t importance_bias; /* [H] */
    int64_t erasure_bias;    /* [H] */
    int64_t decay_rate;      /* [H] -log(1 - lambda) */
    int64_t read_norm;       /* [K] */
    int64_t chat_keep;       /* [R] */
    int64_t chat_add;        /* [R] */
    /* Where the layer's state begins in a stream, in floats. Attention: keys [Hkv, ring / 16, D, 16], then values
     * [Hkv, ring, D16], position p in slot p % ring. Memory: S [H, K, V16], then the previous vector [D].
     * D16 and V16 are the widths rounded up to a multiple of 16. */
    int64_t state;
} ssmn_engine_layer;

/* How a stream learns. A negative number means what the model has. */
typedef struct ssmn_engine_learning {
    float eta_scale;
    float decay_scale;
    float plasticity_eta;
    float decay_rate; /* -log(1 - lambda) */
    float write_threshold;
    float output_eta;
    float output_rate; /* -log(1 - lambda) of the output memory */
    int32_t frozen;
} ssmn_engine_learning;

/* Around the layers of a model of vectors:
 *
 * The front. A column's statistics follow, for the n-th of its values x, with r = max(norm_rate, 1 / n),
 *
 *     d = x - m, within +- 4 s from the 9th value on     m += r d     s^2 = (1 - r) (s^2 + r d^2)     z = (x - m) / s
 *
 * z within +- 10 (m is kept as mean + rest). Read is [z or x, a mark of each missing value if masks_missing, static,
 * future]; a missing value reads as 0. A row that lacks all its values is absent: it changes nothing, its output is 0,
 * and its time is added to that of the next row.
 *
 * The head. SSMN_GAUSSIAN: mean, and softplus(raw + log(e - 1)) + 0.001. SSMN_QUANTILES: rising ones, each a softplus
 * from its neighbour. Outputs are mapped back to units by m and s of their columns if is_normalised and has_columns.
 *
 * The read-out adds R^T p to the point, the mean or the middle quantile, p = [f ; 1] / sqrt(2), f = the last normalised
 * vector at unit length, what is read divided by the root of its width, or both. A step's target, standardised by the
 * statistics before the step, is the truth of what the step before (key p', own output o') should have said; with
 * e = target - o' and a = exp(log_keep elapsed),
 *
 *     SSMN_LMS        R = a R + eta p' (e - a R^T p')^T / |p'|^2, by output, if its target is known (not NaN)
 *     SSMN_SQUARES    A = a A + p' p'^T, b = a b + p' e^T, R = (A + (ridge + 1e-6 tr A) I)^-1 b, if all are known
 *
 * The second solves by conjugate gradients, preconditioned by the inverse of A at some earlier step, carried on by
 * rank-1 updates: O(F^2) a step. A, b and the inverse are doubles. */
enum {
    SSMN_POINT = 0,
    SSMN_GAUSSIAN = 1,
    SSMN_QUANTILES = 2,
    SSMN_NO_READOUT = 0,
    SSMN_LMS = 1,
    SSMN_SQUARES = 2,
    SSMN_READS_HIDDEN = 0,
    SSMN_READS_INPUTS = 1,
    SSMN_READS_BOTH = 2
};

typedef struct ssmn_engine {
    /* By the caller before ssmn_engine_layout: */
    int64_t is_text;
    int64_t has_encoder;
    int64_t is_tied; /* output = input */
    int64_t inputs;  /* width C of the input, or number of tokens */
    int64_t outputs; /* numbers per step: O outputs times head_parts; or the number of tokens */
    int64_t width;   /* D */
    int64_t layer_count;
    int64_t query_heads;
    int64_t key_heads;
    int64_t window;
    int64_t has_rotary;
    int64_t has_sinks;
    int64_t memory_heads;
    int64_t has_erasure; /* rule erase */
    int64_t is_hebbian;  /* rule hebbian; neither: delta */
    int64_t pairs_same;  /* keys from the same vector, not the previous one */
    int64_t chat_rounds;
    int64_t inner_width; /* of the feed-forward */
    int64_t has_output_memory;
    int64_t format; /* of the large matrices; of a memory's SSMN_INT8 if this is SSMN_INT4 */
    int64_t chunk;  /* rows that are computed at once: streams times steps */
    int64_t threads;
    float norm_epsilon;
    float plasticity_eta;
    float write_threshold;
    float read_floor; /* share of the write strength below which a read is faded */
    float chat_epsilon;
    float output_eta;
    float output_rate; /* -log(1 - lambda) of the output memory */
    float output_threshold;
    float output_switch;
    /* Of vectors alone; what they mean is said below. */
    int64_t masks_missing; /* NaN is a missing value */
    int64_t is_normalised;
    int64_t static_width;
    int64_t future_width;
    int64_t head_kind;        /* SSMN_POINT, SSMN_GAUSSIAN or SSMN_QUANTILES */
    int64_t head_parts;       /* numbers per output: 1, 2 or the number of quantiles */
    int64_t head_middle;      /* the quantile that stands for all */
    int64_t has_columns;      /* the outputs speak of columns of the input */
    int64_t readout;          /* SSMN_NO_READOUT, SSMN_LMS or SSMN_SQUARES */
    int64_t readout_features; /* SSMN_READS_HIDDEN, SSMN_READS_INPUTS or SSMN_READS_BOTH */
    double norm_rate;
    float readout_eta;
    float readout_log_keep; /* log(1 - forget) */
    double readout_ridge;
    ssmn_engine_layer* layers;
    /* By ssmn_engine_layout: */
    ssmn_matrix input;  /* [D, what is read] float32, or the embeddings [inputs, D] */
    ssmn_matrix output; /* [outputs, D]; of vectors float32 */
    ssmn_matrix encoder_expand;
    ssmn_matrix encoder_contract;
    int64_t input_bias;  /* [D] */
    int64_t output_bias; /* [outputs] */
    int64_t norm;        /* [D] */
    int64_t frequencies; /* [head width / 2] double */
    int64_t columns;     /* [O] int64, if has_columns */
    int64_t gaps;        /* [Q] of quantiles: of each below the middle one the gap to the next, of each above it to the
                          * one before, as they are before the softplus; of the middle one the number added to it */
    int64_t workspace;
    int64_t arena_bytes;
    int64_t ring;  /* slots of the window, a multiple of 16 */
    int64_t front; /* where the front's state begins in a stream, in floats. The encoder's: [3, D], oldest first. That
                    * of vectors: mean, rest, deviation, count [C] each if is_normalised, then the pending time */
    int64_t head;  /* likewise the head's. The output memory's: M [outputs, D16], the key [D16], prediction and
                    * ratio [outputs each], the trust. A read-out's on F - 1 features and a constant: the key [F16], the
                    * prediction [O16]; then for SSMN_LMS R^T [O, F16]; for SSMN_SQUARES as doubles, F8 being F rounded
                    * up to a multiple of 8, b^T [O, F8], A [F, F8], and what the library derives from these: an inverse
                    * [F, F8] and one number, 0 = there is none yet */
    int64_t stream_floats;
    /* By the caller afterwards: */
    void* arena;
    float* streams;                       /* [capacity, stream_floats] */
    int64_t* positions;                   /* [capacity] */
    const ssmn_engine_learning* learning; /* [capacity] */
    int32_t busy;                         /* 0; set while a call runs */
} ssmn_engine;

/* Fills in where everything lies and how large it is. The weights are packed by the Python package, whose
 * Engine.save_image writes them to a file; examples/engine.c reads such a file and is a whole program. */
SSMN_API void ssmn_engine_layout(ssmn_engine* engine);

typedef struct ssmn_engine_call {
    int64_t streams;      /* n, how many take part */
    int64_t steps;        /* T */
    const int64_t* which; /* [n] their numbers, each at most once */
    const void* x;        /* [T, n, inputs] float, or [T, n] int64 token numbers */
    const float* elapsed; /* [T, n] time since the step before, or NULL for ones */
    float* y;             /* out [T, n, outputs], or [n, outputs] if last_only */
    int64_t last_only;
    const float* target; /* [T, n, O], or NULL */
    const float* future; /* [T, n, future_width], or NULL if that is 0 */
    const float* fixed;  /* [n, static_width], or NULL if that is 0 */
} ssmn_engine_call;

/* Reads the next T steps of n streams. SSMN_BUSY: another call is running on this engine. SSMN_NOT_FINITE,
 * SSMN_UNKNOWN_TOKEN: x has NaN (where that is no missing value), an infinity, or no token; or target has an infinity;
 * or future or fixed are not finite. After these nothing has changed. */
SSMN_API int32_t ssmn_engine_run(ssmn_engine* engine, const ssmn_engine_call* call);

#ifdef __cplusplus
}
#endif

#endif

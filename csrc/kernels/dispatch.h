// One library holds the kernels several times, once per instruction set: a *path*. The best path that the processor has
// is chosen when it is first needed; the environment variable SSMN_KERNELS names another one.
//
// The sources of a path (CMakeLists.txt lists them) are compiled once per path with that path's compiler flags and
// SSMN_PATH set to its namespace. They may define nothing outside ssmn::SSMN_PATH and no weak symbols: the linker
// merges weak ones across paths, and code for one processor would then run on another. So helpers stand in an anonymous
// namespace, and nothing of the standard library that is not inlined is used there.
#ifndef SSMN_DISPATCH_H
#define SSMN_DISPATCH_H

#include "ssmn.h"
#include "window.h"

namespace ssmn {

struct Kernels {
    const char* path;
    const char* instruction_set;
    decltype(&ssmn_memory) memory;
    decltype(&ssmn_memory_backward) memory_backward;
    WindowForwardFunction* window_forward;
    WindowBackwardFunction* window_backward;
    decltype(&ssmn_output_memory) output_memory;
    decltype(&ssmn_cross_entropy) cross_entropy;
    decltype(&ssmn_scan) scan;
    decltype(&ssmn_scan_backward) scan_backward;
    decltype(&ssmn_ntm) ntm;
    decltype(&ssmn_ntm_backward) ntm_backward;
    decltype(&ssmn_matrix_product) matrix_product;
    decltype(&ssmn_engine_run) engine_run;
};

// The kernels in use.
const Kernels& kernels();

}  // namespace ssmn

#endif

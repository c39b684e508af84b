// The kernels of one path, for the files that are compiled once per path; `dispatch.h` explains.
#ifndef SSMN_PATH_H
#define SSMN_PATH_H

#include "dispatch.h"
#include "ssmn.h"

namespace ssmn {
namespace SSMN_PATH {

extern const Kernels kKernels;

extern decltype(ssmn_memory) memory;
extern decltype(ssmn_memory_backward) memory_backward;
extern WindowForwardFunction window_forward;
extern WindowBackwardFunction window_backward;

extern decltype(ssmn_output_memory) output_memory;
extern decltype(ssmn_cross_entropy) cross_entropy;
extern decltype(ssmn_scan) scan;
extern decltype(ssmn_scan_backward) scan_backward;
extern decltype(ssmn_ntm) ntm;
extern decltype(ssmn_ntm_backward) ntm_backward;
extern decltype(ssmn_matrix_product) matrix_product;
extern decltype(ssmn_engine_run) engine_run;

}  // namespace SSMN_PATH
}  // namespace ssmn

#endif

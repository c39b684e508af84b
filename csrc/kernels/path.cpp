#include "path.h"

#define SSMN_TEXT_OF(x) #x
#define SSMN_TEXT(x) SSMN_TEXT_OF(x)

namespace ssmn {
namespace SSMN_PATH {

const Kernels kKernels = {
    SSMN_PATH_NAME, SSMN_PATH_INSTRUCTIONS, memory, memory_backward, window_forward, window_backward, output_memory,
    cross_entropy,  scan,                   scan_backward, ntm, ntm_backward, matrix_product, engine_run,
};

}  // namespace SSMN_PATH
}  // namespace ssmn

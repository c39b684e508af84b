#include "workspace.h"

#include <cstddef>
#include <new>

namespace ssmn {

Workspace::Workspace(int64_t bytes)
    : data_(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64}, std::nothrow))) {}

Workspace::~Workspace() {
    ::operator delete(data_, std::align_val_t{64});
}

}  // namespace ssmn

// Memory for the length of one call.
#ifndef SSMN_WORKSPACE_H
#define SSMN_WORKSPACE_H

#include <cstdint>

namespace ssmn {

class Workspace {
  public:
    explicit Workspace(int64_t bytes);  // not initialised, aligned to 64 bytes
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    // Null if there is no memory.
    char* data() const { return data_; }

  private:
    char* data_;
};

}  // namespace ssmn

#endif

// Memory that a thread works in.
#pragma once

#include "kernels.h"

namespace deform_attn {
namespace {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hands out aligned parts of a block of memory. Without a block it only adds up sizes.
struct Scratch {
  uintptr_t block;
  size_t size = 0;

  template <class T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(block + size);
    size += round_up(count * sizeof(T), kAlign);
    return part;
  }
};

}  // namespace
}  // namespace deform_attn

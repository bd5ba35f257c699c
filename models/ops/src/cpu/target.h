// BEGIN_TARGET("avx2,fma") ... END_TARGET: code between them may use these instructions, whatever the command line
// says. The system's headers come first, so that none of their inline functions is compiled with them.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define TARGET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BEGIN_TARGET(features) \
  TARGET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define BEGIN_TARGET(features) _Pragma("GCC push_options") TARGET_PRAGMA(GCC target(features))
#define END_TARGET _Pragma("GCC pop_options")
#endif

// Vectors of VECTOR_BYTES bytes in the compilers' own vector notation: one source for AVX-512, AVX2, SSE2 and NEON.
// The file that includes this sets VECTOR_BYTES and the instruction set first.
//
// A           float or double: the type of a lane
// S           Simd<A>, with V, its vector of A, and I, its vector of integers Int of the same size
// T           type in memory: A or BFloat16
// lane...     0, 1, .., width - 1
// half, step  powers of two: lanes whose numbers differ in that bit belong together
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../arithmetic.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, typename Simd<A>::I{__VA_ARGS__})
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace deform_attn {
namespace {

struct BFloat16 {
  uint16_t bits;
};

template <class A>
struct Lane;
template <>
struct Lane<float> {
  using Int = int32_t;
};
template <>
struct Lane<double> {
  using Int = int64_t;
};

template <class A>
struct Simd {
  static constexpr int width = VECTOR_BYTES / sizeof(A);
  using Int = typename Lane<A>::Int;
  typedef A V __attribute__((vector_size(VECTOR_BYTES)));
  typedef Int I __attribute__((vector_size(VECTOR_BYTES)));
  using Lanes = std::make_integer_sequence<int, width>;

  INLINE static V load(const A* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  INLINE static V load(const BFloat16* p) {
    typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2)));
    typedef uint32_t Word __attribute__((vector_size(VECTOR_BYTES)));
    Half half;
    memcpy(&half, p, sizeof half);
    return (V)(__builtin_convertvector(half, Word) << 16);
  }
  INLINE static void store(A* p, V v) { memcpy(p, &v, sizeof v); }
  INLINE static void store(BFloat16* p, V v) {  // rounds to nearest even; NaN stays NaN
    typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2)));
    typedef uint32_t Word __attribute__((vector_size(VECTOR_BYTES)));
    const Word bits = (Word)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Half half = __builtin_convertvector(v == v ? rounded : Word{} + 0x7fc0, Half);
    memcpy(p, &half, sizeof half);
  }
  // A store past the caches, to an address that is aligned to the vector. Others see it after finish_streams.
#if VECTOR_BYTES == 16
  INLINE static void stream(A* p, V v) { store(p, v); }
  INLINE static void finish_streams() {}
#else
#if defined(__clang__)
  INLINE static void stream(A* p, V v) { __builtin_nontemporal_store(v, reinterpret_cast<V*>(p)); }
#elif VECTOR_BYTES == 32
  INLINE static void stream(float* p, V v) { __builtin_ia32_movntps256(p, v); }
#else
  INLINE static void stream(float* p, V v) { __builtin_ia32_movntps512(p, v); }
#endif
  INLINE static void finish_streams() { __builtin_ia32_sfence(); }
#endif
  // The first n elements, the others 0.
  template <class T>
  INLINE static V load_some(const T* p, int n) {
    T padded[width] = {};
    memcpy(padded, p, n * sizeof(T));
    return load(padded);
  }
  template <class T>
  INLINE static void store_some(T* p, V v, int n) {
    T padded[width];
    store(padded, v);
    memcpy(p, padded, n * sizeof(T));
  }
  INLINE static I load_int(const Int* p) {
    I i;
    memcpy(&i, p, sizeof i);
    return i;
  }

  // x and y of `width` consecutive points (x, y), and back.
  INLINE static void load_pairs(const A* p, V& x, V& y) { load_pairs(load(p), load(p + width), x, y, Lanes()); }
  INLINE static void store_pairs(A* p, V x, V y) { store_pairs(p, x, y, Lanes()); }

  INLINE static V max_of(V v) {
    return fold<width / 2>(v, [](V a, V b) { return a > b ? a : b; });
  }
  INLINE static V sum_of(V v) {
    return fold<width / 2>(v, [](V a, V b) { return a + b; });
  }

  // Lane i of the result is the sum of row(i). Asks for rows in an order that needs few of them at a time.
  template <class Row>
  INLINE static V row_sums(Row row) {
    return row_sums<1, 0>(row);
  }

 private:
  template <int... lane>
  INLINE static void load_pairs(V a, V b, V& x, V& y, std::integer_sequence<int, lane...>) {
    x = SHUFFLE(a, b, (2 * lane)...);
    y = SHUFFLE(a, b, (2 * lane + 1)...);
  }
  template <int... lane>
  INLINE static void store_pairs(A* p, V x, V y, std::integer_sequence<int, lane...>) {
    store(p, SHUFFLE(x, y, (lane / 2 + lane % 2 * width)...));
    store(p + width, SHUFFLE(x, y, (width / 2 + lane / 2 + lane % 2 * width)...));
  }
  // Exchanges lanes whose numbers differ in the bit `half`.
  template <int half, int... lane>
  INLINE static V swap(V v, std::integer_sequence<int, lane...>) {
    return SHUFFLE(v, v, (lane ^ half)...);
  }
  template <int half, class Operation>
  INLINE static V fold(V v, Operation operation) {
    if constexpr (half == 0)
      return v;
    else
      return fold<half / 2>(operation(v, swap<half>(v, Lanes())), operation);
  }
  // Lanes without the bit `half` add up a's halves, the others b's.
  template <int half, int... lane>
  INLINE static V add_halves(V a, V b, std::integer_sequence<int, lane...>) {
    return SHUFFLE(a, b, (lane & half ? width + lane : lane)...) +
           SHUFFLE(a, b, (lane & half ? width + (lane ^ half) : (lane ^ half))...);
  }
  // The rows i, i + step, i + 2 * step, ..., summed up to groups of `step` lanes.
  template <int step, int i, class Row>
  INLINE static V row_sums(Row row) {
    if constexpr (step == width)
      return row(i);
    else
      return add_halves<step>(row_sums<2 * step, i>(row), row_sums<2 * step, i + step>(row), Lanes());
  }
};

template <class A>
struct VectorNumber {
  using S = Simd<A>;
  using V = typename S::V;
  INLINE static V constant(double x) { return V{} + A(x); }
  INLINE static V max(V a, V b) { return a > b ? a : b; }
  INLINE static V min(V a, V b) { return a < b ? a : b; }
  INLINE static V floor(V x) {  // of numbers that fit the integers
    const V whole = __builtin_convertvector(__builtin_convertvector(x, typename S::I), V);
    return whole > x ? whole - A(1) : whole;
  }
};
template <>
struct Number<Simd<float>::V> : VectorNumber<float> {
  // 2^x within 2 units in the last place, 0 below the smallest normal number.
  INLINE static V exp2(V x) {
    const auto vanishes = x < -126.0f;
    x = vanishes ? V{} - 126.0f : x;
    const V whole = floor(x + 0.5f), t = (x - whole) * 0.6931471805599453f;  // |t| <= ln(2) / 2
    V y = V{} + 1.0f / 5040;
    y = y * t + 1.0f / 720;
    y = y * t + 1.0f / 120;
    y = y * t + 1.0f / 24;
    y = y * t + 1.0f / 6;
    y = y * t + 0.5f;
    y = y * t + 1.0f;
    y = y * t + 1.0f;
    const V power = (V)((__builtin_convertvector(whole, Simd<float>::I) + 127) << 23);
    return vanishes ? V{} : y * power;
  }
  // Of positive normal numbers, within 2 units in the last place of the result or of 1.
  static V log2(V x) {
    using I = Simd<float>::I;
    const I exponent = ((I)x - 0x3f3504f3) >> 23;  // so that the mantissa lies in [sqrt(1/2), sqrt(2))
    const V mantissa = (V)((I)x - (exponent << 23));
    const V t = (mantissa - 1.0f) / (mantissa + 1.0f), square = t * t;
    V y = V{} + 1.0f / 9;
    y = y * square + 1.0f / 7;
    y = y * square + 1.0f / 5;
    y = y * square + 1.0f / 3;
    y = y * square + 1.0f;
    return __builtin_convertvector(exponent, V) + y * t * float(2 * kLog2E);
  }
};
template <>
struct Number<Simd<double>::V> : VectorNumber<double> {
  INLINE static V exp2(V x) {
    for (int i = 0; i < S::width; ++i) x[i] = ::exp2(x[i]);
    return x;
  }
  static V log2(V x) {
    for (int i = 0; i < S::width; ++i) x[i] = ::log2(x[i]);
    return x;
  }
};

}  // namespace
}  // namespace deform_attn

// Vectors of the widest kind the compilation level has, written with the vector extensions of GCC
// and Clang: one source serves every instruction set. Files that include this are compiled once per
// level, with VIMAE_SIMD naming the level; everything here has internal linkage, so that no code
// made for a newer processor can stand in for a function of an older one at link time.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define VIMAE_SIMD_BYTES 64
#elif defined(__AVX__)
#define VIMAE_SIMD_BYTES 32
#else
#define VIMAE_SIMD_BYTES 16
#endif

#define VIMAE_INLINE inline __attribute__((always_inline))
#define VIMAE_LAMBDA __attribute__((always_inline))

namespace vimae::VIMAE_SIMD {
namespace {

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  typedef std::int32_t Int __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  // Adding this to |x| < 2^22 leaves round(x) in the low bits.
  static constexpr float round_magic = 0x1.8p23f;
  static constexpr std::int32_t round_bits = 0x4B400000;
  static constexpr int mantissa_bits = 23, exponent_bias = 127, exp_degree = 7;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f, exp_underflow = -87.0f;
};

template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  typedef std::int64_t Int __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  static constexpr double round_magic = 0x1.8p52;
  static constexpr std::int64_t round_bits = 0x4338000000000000;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023, exp_degree = 13;
  static constexpr double ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b39p-40,
                          exp_underflow = -708.0;
};

template <class T>
using Vec = typename Lanes<T>::Vec;

template <class T>
constexpr int kLanes = VIMAE_SIMD_BYTES / int(sizeof(T));

template <class T>
VIMAE_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // not 0 + x, which compilers must keep for the sake of -0
}

template <class T>
VIMAE_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
VIMAE_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// 0, 1, 2, ...
template <class T>
VIMAE_INLINE Vec<T> lane_numbers() {
  Vec<T> v;
  for (int l = 0; l < kLanes<T>; ++l) v[l] = T(l);
  return v;
}

// The lanes in float64: one vector, the two halves of a float vector added.
VIMAE_INLINE Vec<double> widen(Vec<double> v) { return v; }

VIMAE_INLINE Vec<double> widen(Vec<float> v) {
  typedef float Half __attribute__((vector_size(VIMAE_SIMD_BYTES / 2)));
  Half low, high;
  std::memcpy(&low, &v, sizeof low);
  std::memcpy(&high, reinterpret_cast<char*>(&v) + sizeof low, sizeof high);
  return __builtin_convertvector(low, Vec<double>) + __builtin_convertvector(high, Vec<double>);
}

// The sum of the lanes, as a fixed tree.
VIMAE_INLINE double sum(Vec<double> v) {
#if VIMAE_SIMD_BYTES == 16
  return v[0] + v[1];
#else
  typedef double Half __attribute__((vector_size(VIMAE_SIMD_BYTES / 2)));
  Half low, high;
  std::memcpy(&low, &v, sizeof low);
  std::memcpy(&high, reinterpret_cast<char*>(&v) + sizeof low, sizeof high);
  const Half half = low + high;
#if VIMAE_SIMD_BYTES == 32
  return half[0] + half[1];
#else
  return (half[0] + half[2]) + (half[1] + half[3]);
#endif
#endif
}

// exp(x) for x <= 0: below 1.2 ulp; 0 where the result would be subnormal; NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2, and the Taylor polynomial of exp(r), whose remainder at these
// degrees is under a tenth of an ulp.
template <class T>
VIMAE_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  using L = Lanes<T>;
  using Int = typename L::Int;
  const Vec<T> shifted = x * T(1.4426950408889634) + L::round_magic;
  const Vec<T> n = shifted - L::round_magic;
  const Vec<T> r = (x - n * L::ln2_high) - n * L::ln2_low;
  double factorial = 1;
  for (int k = 2; k <= L::exp_degree; ++k) factorial *= k;
  Vec<T> p = splat<T>(T(1 / factorial));
#pragma GCC unroll 16
  for (int k = L::exp_degree; k > 0; --k) {
    factorial /= k;
    p = p * r + T(1 / factorial);
  }
  Int bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - L::round_bits + L::exponent_bias) << L::mantissa_bits;
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof power);
  return x < splat<T>(L::exp_underflow) ? Vec<T>{} : p * power;
}

// Vectors of T, as the arithmetic of a pair wants them.
template <class T>
struct VectorOps {
  static VIMAE_INLINE Vec<T> reciprocal(Vec<T> x) { return T(1) / x; }
  static VIMAE_INLINE Vec<T> exp_nonpositive(Vec<T> x) { return VIMAE_SIMD::exp_nonpositive<T>(x); }
};

}  // namespace
}  // namespace vimae::VIMAE_SIMD

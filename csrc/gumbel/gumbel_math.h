// Random words and what becomes of them, for scalars on the GPU and vectors on the CPU.
#pragma once

#include <cstdint>
#include <limits>

#include "common/host_device.h"

namespace vimae {

// Philox4x32-10 (Salmon et al. 2011) with the counter (low word of c0, low word of c1, 0, 0) and
// the seed as key. V is std::uint64_t or vectors of them, of which the upper halves do not count;
// Ops::multiply(a, m) is the 64-bit product of the low word of a and m.
template <class Ops, class V>
VIMAE_HOST_DEVICE void philox(V c0, V c1, std::uint64_t seed, V (&word)[4]) {
  V c2 = {}, c3 = {};
  std::uint32_t k0 = std::uint32_t(seed), k1 = std::uint32_t(seed >> 32);
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const V p0 = Ops::multiply(c0, 0xD2511F53u), p1 = Ops::multiply(c2, 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ std::uint64_t(k0);
    c2 = (p0 >> 32) ^ c3 ^ std::uint64_t(k1);
    c1 = p1, c3 = p0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

// log(1 + r) for sqrt(1/2) <= 1 + r <= sqrt(2), to about an ulp also where r is small. In float32
// it is r - r^2 / 2 + r^3 p with the polynomial p whose largest error is the smallest, 3.2e-8 of
// the logarithm. In float64 it is 2 atanh(s) with s = r / (2 + r), by its Taylor series, arranged
// so that r leads.
template <class Ops, class T, class V>
VIMAE_HOST_DEVICE V log1p_near(V r) {
  if constexpr (sizeof(T) == 4) {
    constexpr T c[] = {0x1.5556d8p-2f, -0x1.000382p-2f, 0x1.98d7f2p-3f, -0x1.53824ap-3f,
                       0x1.317458p-3f, -0x1.2432b8p-3f, 0x1.645eacp-4f};
    const V z = r * r, low = (c[3] * r + c[2]) * z + (c[1] * r + c[0]);
    const V p = ((c[6] * r + c[5]) * r + c[4]) * (z * z) + low;
    return (p * r - T(0.5)) * z + r;
  } else {
    const V s = r * Ops::reciprocal(r + T(2)), z = s * s, half = r * r * T(0.5);
    V p = z * T(2.0 / 21);
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 16
#endif
    for (int k = 9; k > 0; --k) p = (p + T(2.0 / (2 * k + 1))) * z;
    return r - (half - s * (half + p));
  }
}

// Adds to it k log 2, k counting as Ops::split does.
template <class T, class V>
VIMAE_HOST_DEVICE V add_log2(V k, V log) {
  if constexpr (sizeof(T) == 4)
    // Rounded to float32, log 2 is right to 3e-9 of itself.
    return k * T(0x1.62e43p-24) + log;
  else
    // The high part times k is exact.
    return k * T(0x1.62e42fefap-1) + (log + k * T(0x1.cf79abc9e3b39p-40));
}

// log(x) of a normal positive number. Ops::split(x, k) is f with x = 2^k f and sqrt(1/2) <= f <
// sqrt(2); in float32 k is in units of 2^-23, as it stands in the bits of x.
template <class Ops, class T, class V>
VIMAE_HOST_DEVICE V log_positive(V x) {
  V k;
  const V f = Ops::split(x, k);
  return add_log2<T>(k, log1p_near<Ops, T>(f - T(1)));
}

// -log(1 - u) with u = (word + 1/2) 2^-32 from the word as a T and, for 1 - u is not to be rounded
// to 0, the word's complement as a T: between 2^-33 and 33 log 2.
template <class Ops, class T, class V>
VIMAE_HOST_DEVICE V exponential(V word, V complement) {
  const V u = (word + T(0.5)) * T(0x1p-32), v = (complement + T(0.5)) * T(0x1p-32);
  V k;
  const V f = Ops::split(v, k);
  // Where k is 0, u is more exact than v.
  return -add_log2<T>(k, log1p_near<Ops, T>(v > T(0.70710678118654752) ? -u : f - T(1)));
}

// For functions on GPUs, which may not call std::numeric_limits.
template <class T>
constexpr T kTiny = std::numeric_limits<T>::min();
template <class T>
constexpr T kMost = std::numeric_limits<T>::max();
template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

// numerator / tau as a T, or the normal number next to it if it is too large or too small to be
// one; NaN where tau is not positive.
template <class T, class N>
VIMAE_HOST_DEVICE T over_tau(N numerator, N tau) {
  const N x = numerator / tau;
  return !(tau > 0) ? kNaN<T> : x < N(kTiny<T>) ? kTiny<T> : x > N(kMost<T>) ? kMost<T> : T(x);
}

}  // namespace vimae

// Vectors of the widest kind the compilation level has, written with the vector extensions of GCC
// and Clang: one source serves every instruction set. Files that include this are compiled once per
// level, with VIMAE_SIMD naming the level; everything here has internal linkage, so that no code
// made for a newer processor can stand in for a function of an older one at link time.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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
  typedef std::uint32_t Bits __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  // Adding this to |x| < 2^22 leaves round(x) in the low bits.
  static constexpr float round_magic = 0x1.8p23f;
  static constexpr std::int32_t round_bits = 0x4B400000;
  static constexpr int mantissa_bits = 23, exponent_bias = 127, exp_degree = 7;
  static constexpr std::uint32_t sqrt_half_bits = 0x3f3504f3;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f, exp_underflow = -87.0f;
};

template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  typedef std::int64_t Int __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  typedef std::uint64_t Bits __attribute__((vector_size(VIMAE_SIMD_BYTES)));
  static constexpr double round_magic = 0x1.8p52;
  static constexpr std::int64_t round_bits = 0x4338000000000000;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023, exp_degree = 13;
  static constexpr std::uint64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
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

// The lower and the upper half of the lanes, in float64.
struct Halves {
  Vec<double> low, high;
};

VIMAE_INLINE Halves halves(Vec<float> v) {
  typedef float Half __attribute__((vector_size(VIMAE_SIMD_BYTES / 2)));
  Half half[2];
  std::memcpy(half, &v, sizeof v);
#if VIMAE_SIMD_BYTES == 64
  // GCC by itself converts quarters. With a mask that does nothing: it warns of what the plain
  // instruction leaves undefined.
  return {(Vec<double>)_mm512_maskz_cvtps_pd(0xff, (__m256)half[0]),
          (Vec<double>)_mm512_maskz_cvtps_pd(0xff, (__m256)half[1])};
#else
  return {__builtin_convertvector(half[0], Vec<double>),
          __builtin_convertvector(half[1], Vec<double>)};
#endif
}

// The lanes in float64: one vector, the two halves of a float vector added.
VIMAE_INLINE Vec<double> widen(Vec<double> v) { return v; }

VIMAE_INLINE Vec<double> widen(Vec<float> v) {
  const Halves wide = halves(v);
  return wide.low + wide.high;
}

// Adds the lanes to as many numbers in float64.
VIMAE_INLINE void add_wide(double* to, Vec<double> v) { store(to, load(to) + v); }

VIMAE_INLINE void add_wide(double* to, Vec<float> v) {
  const Halves wide = halves(v);
  add_wide(to, wide.low);
  add_wide(to + kLanes<double>, wide.high);
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

// exp(x) 2^Shift for x <= 0: below 1.2 ulp; 0 where the result would be subnormal; NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2, and the Taylor polynomial of exp(r), whose remainder at these
// degrees is under a tenth of an ulp.
template <class T, int Shift = 0>
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
  bits = (bits - L::round_bits + (L::exponent_bias + Shift)) << L::mantissa_bits;
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof power);
  return x < splat<T>(L::exp_underflow - T(0.6931 * Shift)) ? Vec<T>{} : p * power;
}

// exp(s rate) of a product that is not positive, as exp_nonpositive, but in float32 for fewer
// instructions: 2^(n + r) with |r| <= 1/2 exactly what is left of s times rate / ln2, and the
// polynomial of least relative error with 2^0 = 1, 1.3 ulp.
template <class T>
VIMAE_INLINE Vec<T> exp_of_product(Vec<T> s, T rate) {
  if constexpr (sizeof(T) == 8) {
    return exp_nonpositive<T>(s * rate);
  } else {
    using L = Lanes<T>;
    const T bits_per_unit = rate * T(1.4426950408889634);
    // The low bits of `shifted` are n and the exponent's bias.
    const T magic = L::round_magic + T(L::exponent_bias);
    const Vec<T> shifted = s * bits_per_unit + magic;
    const Vec<T> n = shifted - magic, r = s * bits_per_unit - n, r2 = r * r;
    Vec<T> p = (T(0x1.3cea88p-7f) + T(0x1.5bba16p-10f) * r) * r2 +
               (T(0x1.ebf9bcp-3f) + T(0x1.c6b752p-5f) * r);
    p = p * r2 + (T(1) + T(0x1.62e42ap-1f) * r);
    typename L::Int bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= L::mantissa_bits;
    Vec<T> power;
    std::memcpy(&power, &bits, sizeof power);
    return n < splat(T(1 - L::exponent_bias) + T(0.5)) ? Vec<T>{} : p * power;
  }
}

// exp(s rate) - 1 of a product that is not positive, to a few ulp of itself; NaN stays NaN. As
// exp_of_product, but 1 is taken from the power of two: what is left is the polynomial less 1.
template <class T>
VIMAE_INLINE Vec<T> expm1_of_product(Vec<T> s, T rate) {
  using L = Lanes<T>;
  const T log2e = T(1.4426950408889634), magic = L::round_magic + T(L::exponent_bias);
  const Vec<T> x = s * rate, shifted = s * (rate * log2e) + magic, n = shifted - magic;
  Vec<T> p;
  if constexpr (sizeof(T) == 4) {
    const Vec<T> r = s * (rate * log2e) - n, r2 = r * r;
    p = (T(0x1.3cea88p-7f) + T(0x1.5bba16p-10f) * r) * r2 +
        (T(0x1.ebf9bcp-3f) + T(0x1.c6b752p-5f) * r);
    p = p * r2 + T(0x1.62e430p-1f) * r;
  } else {
    const Vec<T> r = (x - n * L::ln2_high) - n * L::ln2_low;
    p = splat<T>(T(1));
#pragma GCC unroll 16
    for (int k = L::exp_degree; k > 1; --k) p = p * r * T(1.0 / k) + T(1);
    p *= r;
  }
  typename L::Int bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= L::mantissa_bits;
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof power);
  return x < splat<T>(L::exp_underflow) ? splat<T>(T(-1)) : (power - T(1)) + power * p;
}

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// 2^x of x < 100, and 0 where that is next to nothing, of N vectors: 1.3 ulp; NaN stays NaN.
// x = n + r; in float32 the polynomials are those of least relative error with 2^0 = 1 exactly, in
// float64 it is Taylor's, whose remainder is under a tenth of an ulp. Keep a FlushSubnormals.
template <class T, int N>
VIMAE_INLINE void exp2_each(Vec<T>* x) {
  constexpr bool single = sizeof(T) == 4;
#if VIMAE_SIMD_BYTES == 64
  if constexpr (single) {
    constexpr T c[] = {0x1.e974fcp-10f, 0x1.277854p-7f, 0x1.c91ce6p-5f,
                       0x1.ebdb56p-3f,  0x1.62e4bap-1f, 1};
    // Step by step: those of one vector wait for one another, and a processor does not see far
    // enough ahead to find those of the next by itself. 0 <= r < 1, for the scaling rounds x down.
    Vec<T> r[N], p[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      r[i] = (Vec<T>)_mm512_maskz_reduce_ps(0xffff, (__m512)x[i], 9);
      p[i] = splat(c[0]);
    }
#pragma GCC unroll 8
    for (int k = 1; k < 6; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) p[i] = p[i] * r[i] + c[k];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
      x[i] = (Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)p[i], (__m512)x[i]);
    return;
  }
#endif
  using L = Lanes<T>;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    // |r| <= 1/2. The low bits of `shifted` are n and the exponent's bias.
    const T magic = L::round_magic + T(L::exponent_bias);
    const Vec<T> shifted = x[i] + magic;
    const Vec<T> r = x[i] - (shifted - magic);
    Vec<T> p;
    if constexpr (single) {
      // In pairs, to wait for fewer results of one another.
      const Vec<T> r2 = r * r;
      p = (T(0x1.3cea88p-7f) + T(0x1.5bba16p-10f) * r) * r2 +
          (T(0x1.ebf9bcp-3f) + T(0x1.c6b752p-5f) * r);
      p = p * r2 + (T(1) + T(0x1.62e42ap-1f) * r);
    } else {
      double c[14] = {1};
      for (int k = 1; k <= 13; ++k) c[k] = c[k - 1] * kLn2 / k;
      p = splat<T>(T(c[13]));
#pragma GCC unroll 16
      for (int k = 12; k >= 0; --k) p = p * r + T(c[k]);
    }
    typename L::Int bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= L::mantissa_bits;
    Vec<T> power;
    std::memcpy(&power, &bits, sizeof power);
    x[i] = x[i] < splat<T>(single ? -100 : -1000) ? Vec<T>{} : p * power;
  }
}

template <class T>
VIMAE_INLINE Vec<T> exp2_of(Vec<T> x) {
  exp2_each<T, 1>(&x);
  return x;
}

// x = 2^k f with sqrt(1/2) <= f < sqrt(2), for normal positive x; in float32 k is in units of
// 2^-23.
template <class T>
VIMAE_INLINE Vec<T> split_exponent(Vec<T> x, Vec<T>& k) {
  using L = Lanes<T>;
  using Bits = typename L::Bits;
  using Bit = decltype(L::sqrt_half_bits + 0);
  Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  const Bits above = bits - L::sqrt_half_bits,
             exponent = above & ~((Bit(1) << L::mantissa_bits) - 1);
  if constexpr (sizeof(T) == 4) {
    k = __builtin_convertvector((typename L::Int)exponent, Vec<T>);
  } else {
    const Bits shifted = (above + (Bit(L::exponent_bias) << L::mantissa_bits)) >> L::mantissa_bits;
    bits = shifted + Bit(L::round_bits - L::exponent_bias);
    std::memcpy(&k, &bits, sizeof k);
    k -= L::round_magic;
    std::memcpy(&bits, &x, sizeof bits);
  }
  bits -= exponent;
  Vec<T> f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

// v in the first n lanes, 0 in the others.
template <class T>
VIMAE_INLINE Vec<T> first_lanes(Vec<T> v, int n) {
  return lane_numbers<T>() < splat(T(n)) ? v : Vec<T>{};
}

// A vector of the n elements at p, 0 < n <= kLanes, and `fill` in its other lanes.
template <class T>
VIMAE_INLINE Vec<T> load_first(const T* p, int n, T fill) {
  if (n == kLanes<T>) return load(p);
#if VIMAE_SIMD_BYTES == 64
  const unsigned mask = (1u << n) - 1;
  const Vec<T> other = splat(fill);
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_mask_loadu_ps((__m512)other, __mmask16(mask), p);
  else
    return (Vec<T>)_mm512_mask_loadu_pd((__m512d)other, __mmask8(mask), p);
#else
  Vec<T> v = splat(fill);
  for (int l = 0; l < n; ++l) v[l] = p[l];
  return v;
#endif
}

// Stores the first n lanes, 0 < n <= kLanes.
template <class T>
VIMAE_INLINE void store_first(T* p, Vec<T> v, int n) {
  if (n == kLanes<T>) return store(p, v);
#if VIMAE_SIMD_BYTES == 64
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16(mask), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8(mask), (__m512d)v);
#else
  for (int l = 0; l < n; ++l) p[l] = v[l];
#endif
}

// f over all lanes, f being of two vectors or scalars: halves, quarters and so on, until one is
// left.
template <class E, class V, class F>
VIMAE_INLINE E reduce(V v, F f) {
  if constexpr (sizeof(V) == 2 * sizeof(E)) {
    return f(E(v[0]), E(v[1]));
  } else {
    typedef E Half __attribute__((vector_size(sizeof(V) / 2)));
    Half low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<char*>(&v) + sizeof low, sizeof high);
    return reduce<E>(f(low, high), f);
  }
}

// The 64-bit products of the low halves of a and m.
VIMAE_INLINE Lanes<double>::Bits multiply_low(Lanes<double>::Bits a, std::uint32_t m) {
  using Bits = Lanes<double>::Bits;
#if VIMAE_SIMD_BYTES == 64
  // With a mask that does nothing: GCC warns of what the plain one leaves undefined.
  return (Bits)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif VIMAE_SIMD_BYTES == 32
  return (Bits)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__x86_64__)
  return (Bits)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
  return (a & std::uint64_t(0xffffffff)) * std::uint64_t(m);
#endif
}

// Stores a[0], b[0], a[1], b[1], ...
VIMAE_INLINE void zip(void* p, Lanes<double>::Bits a, Lanes<double>::Bits b) {
  using Bits = Lanes<double>::Bits;
#if VIMAE_SIMD_BYTES == 64
  const Bits first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  const Bits second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif VIMAE_SIMD_BYTES == 32
  const Bits first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Bits second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
  const Bits first = __builtin_shufflevector(a, b, 0, 2);
  const Bits second = __builtin_shufflevector(a, b, 1, 3);
#endif
  std::memcpy(p, &first, sizeof first);
  std::memcpy(static_cast<char*>(p) + sizeof first, &second, sizeof second);
}

// All bits turned. GCC makes of ~v an instruction that waits for what its register held before: in
// a loop, for the iteration before.
template <class Bits>
VIMAE_INLINE Bits inverted(Bits v) {
#if VIMAE_SIMD_BYTES == 64
  if constexpr (sizeof(Bits) == 64)
    return (Bits)_mm512_ternarylogic_epi32((__m512i)v, (__m512i)v, (__m512i)v, 0x55);
  else
    return (Bits)_mm256_ternarylogic_epi32((__m256i)v, (__m256i)v, (__m256i)v, 0x55);
#else
  return ~v;
#endif
}

// Is there a lane in which the comparison holds?
template <class Int>
VIMAE_INLINE bool any(Int holds) {
#if VIMAE_SIMD_BYTES == 64
  return _mm512_movepi32_mask((__m512i)holds) != 0;
#elif VIMAE_SIMD_BYTES == 32
  return _mm256_movemask_ps((__m256)holds) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)holds) != 0;
#else
  return reduce<std::uint64_t>((Lanes<double>::Bits)holds,
                               [](auto p, auto q) VIMAE_LAMBDA { return p | q; }) != 0;
#endif
}

// Does the comparison hold in every lane?
template <class Int>
VIMAE_INLINE bool all(Int holds) {
#if VIMAE_SIMD_BYTES == 64
  return _mm512_movepi32_mask((__m512i)holds) == 0xffff;
#else
  return !any(~holds);
#endif
}

// a / b to about an ulp, for normal quotients and reciprocals of b.
VIMAE_INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return a / b; }

VIMAE_INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
#if VIMAE_SIMD_BYTES == 64
  // A division takes as long as twenty multiplications.
  const Vec<float> reciprocal = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)b);
  const Vec<float> q = a * reciprocal;
  return q + (a - q * b) * reciprocal;
#else
  return a / b;
#endif
}

// p[index[0]], p[index[1]], ... of the kLanes numbers at p.
template <class T>
VIMAE_INLINE Vec<T> pick(const T* p, typename Lanes<T>::Int index) {
#if VIMAE_SIMD_BYTES == 64
  // With a mask that does nothing, as above.
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)load(p));
  else
    return (Vec<T>)_mm512_maskz_permutexvar_pd(0xff, (__m512i)index, (__m512d)load(p));
#else
#if VIMAE_SIMD_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm256_permutevar8x32_ps((__m256)load(p), (__m256i)index);
#endif
  Vec<T> v;
  for (int l = 0; l < kLanes<T>; ++l) v[l] = p[index[l]];
  return v;
#endif
}

// Of vectors in pieces of 2 N lanes: f of the halves of each piece, those of a piece of `a` first
// and then those of the piece of `b`.
template <int N, class V, class F, int... Lane>
VIMAE_INLINE V fold_pieces(V a, V b, F f, std::integer_sequence<int, Lane...>) {
  constexpr int all = sizeof...(Lane);
  return f(
      __builtin_shufflevector(a, b, (Lane / (2 * N) * 2 * N + Lane % N + (Lane / N % 2) * all)...),
      __builtin_shufflevector(a, b,
                              (Lane / (2 * N) * 2 * N + Lane % N + N + (Lane / N % 2) * all)...));
}

// f over the lanes of each of kLanes vectors, in the lanes of one. The vectors are overwritten.
template <class T, int N = kLanes<T> / 2, class F>
VIMAE_INLINE Vec<T> transposed_reduce(Vec<T>* v, F f) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
    v[i] = fold_pieces<N>(v[i], v[i + N], f, std::make_integer_sequence<int, kLanes<T>>{});
  if constexpr (N == 1)
    return v[0];
  else
    return transposed_reduce<T, N / 2>(v, f);
}

// Exchanges lanes of a and b: those of a in every second piece of N lanes for those of b before.
template <int N, class V, int... Lane>
VIMAE_INLINE void exchange_pieces(V& a, V& b, std::integer_sequence<int, Lane...>) {
  constexpr int all = sizeof...(Lane);
  const V first = __builtin_shufflevector(a, b, (Lane & N ? all + Lane - N : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & N ? all + Lane : Lane + N)...);
  a = first;
}

// Exchanges lane l of vector m for lane m of vector l, of kLanes vectors.
template <class T, int N = kLanes<T> / 2>
VIMAE_INLINE void transpose_lanes(Vec<T>* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & N)) exchange_pieces<N>(v[i], v[i + N], std::make_integer_sequence<int, kLanes<T>>{});
  if constexpr (N > 1) transpose_lanes<T, N / 2>(v);
}

// While there is one, results that would be subnormal are 0 in its thread: to make or to take one
// costs as much as a hundred other operations.
struct FlushSubnormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
#else
  FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
};

// Vectors of T, as the arithmetic of a pair wants them.
template <class T>
struct VectorOps {
  static VIMAE_INLINE Vec<T> reciprocal(Vec<T> x) { return T(1) / x; }
  static VIMAE_INLINE Vec<T> exp_of_product(Vec<T> s, T rate) {
    return VIMAE_SIMD::exp_of_product<T>(s, rate);
  }
};

}  // namespace
}  // namespace vimae::VIMAE_SIMD

// Tiles of pairs on a GPU: what kernels over pairs in many dimensions are made of. A thread has a
// rectangle of pairs in registers, and reads the coordinates of its rows and columns from shared
// memory 16 bytes at a time: 8 rows by 4 columns in float are 3 loads for 32 differences.
#pragma once

#include <cstdint>

#include "common/launch.cuh"

namespace vimae {
namespace {

// A tile has kTileRows rows. Distances are summed over chunks of kChunk coordinates; what the pairs
// do to a row is a product of matrices, kSpan coordinates at a time.
constexpr int kTileThreads = 128, kTileRows = 64, kChunk = 16, kSpan = 32;

// Which of a tile's pairs a thread has: A rows and B columns, side by side.
template <int A, int B>
struct Pairs {
  static constexpr int kA = A, kB = B;
  static constexpr int kAcross = kTileThreads * A / kTileRows;  // threads side by side
  static constexpr int kColumns = kAcross * B;
  static_assert(kAcross <= 32, "the sum of a row stays in a warp");
  static __device__ int row() { return int(threadIdx.x) / kAcross * A; }
  static __device__ int column() { return int(threadIdx.x) % kAcross * B; }
};

// Points between two rows of coordinates in shared memory: 16 bytes more keep the banks apart.
template <class T, int POINTS>
constexpr int kPadded = POINTS + int(16 / sizeof(T));
// The same between points of kSpan coordinates; in float threads read along them.
template <class T>
constexpr int kPaddedSpan = sizeof(T) == 8 ? kPadded<T, kSpan> : kSpan;

template <class T, int N>
__device__ __forceinline__ void read(const T* from, T (&to)[N]) {
  constexpr int kWide = 16 / sizeof(T);
  struct __align__(16) Wide {
    T at[kWide];
  };
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    const Wide wide = *reinterpret_cast<const Wide*>(from + i);
#pragma unroll
    for (int c = 0; c < kWide; ++c) to[i + c] = wide.at[c];
  }
}

template <class T, int N>
__device__ __forceinline__ void write(T* to, const T (&from)[N]) {
  constexpr int kWide = 16 / sizeof(T);
  struct __align__(16) Wide {
    T at[kWide];
  };
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    Wide wide;
#pragma unroll
    for (int c = 0; c < kWide; ++c) wide.at[c] = from[i + c];
    *reinterpret_cast<Wide*>(to + i) = wide;
  }
}

// `from` to shared memory past the registers, there after wait_for_copies(); 0 if nothing exists.
template <class T>
__device__ __forceinline__ void copy(const T* from, bool exists, T* to) {
#if defined(VIMAE_HOST_SHIM) || __CUDA_ARCH__ < 800
  *to = exists ? *from : T(0);
#else
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
      "l"(from), "n"(sizeof(T)), "r"(exists ? int(sizeof(T)) : 0)
      : "memory");
#endif
}

// A barrier is still needed where others read what this thread has copied.
inline __device__ void wait_for_copies() {
#if !defined(VIMAE_HOST_SHIM) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Which coordinates of POINTS points a thread brings to shared memory: a warp takes eight
// coordinates of four points, whole sectors of memory and every bank once.
template <class T, int POINTS>
struct Stage {
  static constexpr int kRounds = POINTS * 8 / kTileThreads;
  int k, point, left;
  const T* at[kRounds];

  // Of points with d coordinates, of which `count` exist; the last one is repeated.
  __device__ Stage(const T* points, int count, int d)
      : k(int(threadIdx.x) % 8), point(int(threadIdx.x) / 8), left(d - k) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      at[r] = points + min(point + r * (kTileThreads / 8), count - 1) * d + k;
#ifndef VIMAE_HOST_SHIM
      asm("" : "+l"(at[r]));  // or the compiler takes it apart, and adds it up for every chunk
#endif
    }
  }

  // to[k][point]: COUNT coordinates from k0 on; 0 beyond the last.
  template <int COUNT = kChunk>
  __device__ __forceinline__ void load(int k0, T* to) const {
#pragma unroll
    for (int c = 0; c < COUNT; c += 8) {
#pragma unroll
      for (int r = 0; r < kRounds; ++r)
        copy(at[r] + k0 + c, c < left - k0,
             to + (k + c) * kPadded<T, POINTS> + point + r * (kTileThreads / 8));
    }
  }
};

// to[point][k]: kSpan coordinates of `points`, of which `count` and `left` exist, from `origin` if
// there is one; 0 beyond. Differences of samples, so that a common offset costs nothing.
template <int POINTS, class T>
__device__ __forceinline__ void stage_differences(const T* points, const T* origin, int count,
                                                  int left, int d, T* to) {
  const int k = int(threadIdx.x) % kSpan, first = int(threadIdx.x) / kSpan;
  const T from = origin && k < left ? origin[k] : T(0);
#pragma unroll
  for (int p = first; p < POINTS; p += kTileThreads / kSpan)
    to[p * kPaddedSpan<T> + k] = k < left && p < count ? points[p * d + k] - from : T(0);
}

// c[i][j] += a[i] b[j] of a warp's matrices, 8 x 4 and 4 x 8, on tensor cores where there are any:
// a lane has a[i][lane / 4][lane % 4], b[j][lane % 4][lane / 4] and c[i][j][lane / 4][lane % 4 * 2]
// with its neighbour.
template <int A, int B>
__device__ __forceinline__ void multiply_add(const double (&a)[A], const double (&b)[B],
                                             double (&c)[A][2 * B]) {
#if !defined(VIMAE_HOST_SHIM) && __CUDA_ARCH__ >= 800
#pragma unroll
  for (int i = 0; i < A; ++i) {
#pragma unroll
    for (int j = 0; j < B; ++j)
      // Volatile: it stays where all lanes are, though not all of them may keep the result.
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                   : "+d"(c[i][2 * j]), "+d"(c[i][2 * j + 1])
                   : "d"(a[i]), "d"(b[j]));
  }
#else
#ifdef VIMAE_HOST_SHIM
  double mine[A + B];
  for (int i = 0; i < A + B; ++i) mine[i] = i < A ? a[i] : b[i - A];
  const auto* all = cuda_shim::gather(mine, A + B);
  const auto of = [&](int i, int lane) { return all[lane][i]; };
#else
  const auto of = [&](int i, int lane) {
    return __shfl_sync(0xffffffffu, i < A ? a[i] : b[i - A], lane);
  };
#endif
  const int lane = int(threadIdx.x) % 32;
#pragma unroll 1
  for (int k = 0; k < 4; ++k) {
    double own[A];
#pragma unroll
    for (int i = 0; i < A; ++i) own[i] = of(i, lane / 4 * 4 + k);
#pragma unroll
    for (int j = 0; j < 2 * B; ++j) {
      const double other = of(A + j / 2, (lane % 4 * 2 + j % 2) * 4 + k);
#pragma unroll
      for (int i = 0; i < A; ++i) c[i][j] = fma(own[i], other, c[i][j]);
    }
  }
#endif
}

// A product of kTileRows x kSpan elements, of which a thread has kOut x kOut: side by side or, in
// float64, where tensor cores leave them.
constexpr int kOut = 4;
static_assert(kTileThreads * kOut * kOut == kTileRows * kSpan, "one each");

template <class T>
struct Product {
  static constexpr bool kDouble = sizeof(T) == 8;
  T at[kOut][kOut] = {};

  static __device__ int row(int a) {
    const int thread = int(threadIdx.x);
    return kDouble ? thread / 64 * 32 + a * 8 + thread % 32 / 4 : thread / 8 * kOut + a;
  }
  static __device__ int coordinate(int c) {
    const int thread = int(threadIdx.x);
    return kDouble ? thread / 32 % 2 * 16 + c / 2 * 8 + thread % 4 * 2 + c % 2
                   : thread % 8 * kOut + c;
  }

  // The sum over j of weight[j][row] y[j][coordinate] is added.
  template <int POINTS>
  __device__ __forceinline__ void add(const T* weight, const T* y) {
    if constexpr (kDouble) {
      // Lanes that read different points read every other one, which keeps the banks apart.
      const int lane = int(threadIdx.x) % 32, first = lane % 4 * 2;
      weight += first * kPadded<T, kTileRows> + int(threadIdx.x) / 64 * 32 + lane / 4;
      y += first * kPaddedSpan<T> + int(threadIdx.x) / 32 % 2 * 16 + lane / 4;
#pragma unroll 4
      for (int step = 0; step < POINTS / 4; ++step) {
        const int j = step / 2 * 8 + step % 2;
        T w[kOut], v[kOut / 2];
#pragma unroll
        for (int a = 0; a < kOut; ++a) w[a] = weight[j * kPadded<T, kTileRows> + a * 8];
#pragma unroll
        for (int c = 0; c < kOut / 2; ++c) v[c] = y[j * kPaddedSpan<T> + c * 8];
        multiply_add(w, v, at);
      }
    } else {
      weight += row(0), y += coordinate(0);
#pragma unroll 8
      for (int j = 0; j < POINTS; ++j) {
        T w[kOut], v[kOut];
        read(weight + j * kPadded<T, kTileRows>, w);
        read(y + j * kSpan, v);
#pragma unroll
        for (int a = 0; a < kOut; ++a) {
#pragma unroll
          for (int c = 0; c < kOut; ++c) at[a][c] = fma(w[a], v[c], at[a][c]);
        }
      }
    }
  }
};

// The sum of x over the threads of a row; all of them have it.
template <int ACROSS, class T>
__device__ __forceinline__ T row_sum(T x) {
#pragma unroll
  for (int step = ACROSS / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

}  // namespace
}  // namespace vimae

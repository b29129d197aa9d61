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

// Which elements of the product a thread has: kOut rows and kOut coordinates of kTileRows, kSpan.
constexpr int kOut = 4;
static_assert(kTileThreads * kOut * kOut == kTileRows * kSpan, "one each");
inline __device__ int out_row() { return int(threadIdx.x) / (kSpan / kOut) * kOut; }
inline __device__ int out_coordinate() { return int(threadIdx.x) % (kSpan / kOut) * kOut; }

// Points between two rows of coordinates in shared memory: 16 bytes more keep the banks apart.
template <class T, int POINTS>
constexpr int kPadded = POINTS + int(16 / sizeof(T));

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

// Which coordinates of POINTS points a thread brings to shared memory: a warp takes eight
// coordinates of four points, whole sectors of memory and every bank once.
template <int POINTS>
struct Stage {
  static constexpr int kRounds = POINTS * 8 / kTileThreads;
  int k, point, at[kRounds];

  // Of points with d coordinates, of which `count` exist; the last one is repeated.
  __device__ Stage(int count, int d) : k(int(threadIdx.x) % 8), point(int(threadIdx.x) / 8) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r)
      at[r] = min(point + r * (kTileThreads / 8), count - 1) * d + k;
  }

  // to[k][point]: the next kChunk coordinates, of which `left` exist; 0 beyond.
  template <class T>
  __device__ __forceinline__ void load(const T* points, int left, T* to) const {
#pragma unroll
    for (int c = 0; c < kChunk; c += 8) {
      const bool exists = k + c < left;
#pragma unroll
      for (int r = 0; r < kRounds; ++r)
        to[(k + c) * kPadded<T, POINTS> + point + r * (kTileThreads / 8)] =
            exists ? points[at[r] + c] : T(0);
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
    to[p * kSpan + k] = k < left && p < count ? points[p * d + k] - from : T(0);
}

// out[a][c] += sum over j of weight[j][row a] y[j][coordinate c].
template <int POINTS, class T>
__device__ __forceinline__ void add_product(const T* weight, const T* y, T (&out)[kOut][kOut]) {
  weight += out_row(), y += out_coordinate();
#pragma unroll 8
  for (int j = 0; j < POINTS; ++j) {
    T w[kOut], v[kOut];
    read(weight + j * kPadded<T, kTileRows>, w);
    read(y + j * kSpan, v);
#pragma unroll
    for (int a = 0; a < kOut; ++a) {
#pragma unroll
      for (int c = 0; c < kOut; ++c) out[a][c] = fma(w[a], v[c], out[a][c]);
    }
  }
}

// The sum of x over the threads of a row; all of them have it.
template <int ACROSS, class T>
__device__ __forceinline__ T row_sum(T x) {
#pragma unroll
  for (int step = ACROSS / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

}  // namespace
}  // namespace vimae

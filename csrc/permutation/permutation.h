// The unbiased squared MMD of N pooled points under many labellings, for the permutation test, and
// random labellings.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "mmd/mmd.h"  // Family, kMaxScales

namespace vimae {

// With u_i one of two numbers, by the label of point i, the statistic of a labelling is
//
//   quadratic * sum_{i != j} k_ij u_i u_j + total * sum_{i != j} k_ij
//
// so all that depends on the labelling is one quadratic form. For n = m, u = +-1 and quadratic is
// 1 / (2 n (n - 1)) + 1 / (2 n^2).
struct Weights {
  double first, second;  // u of a point of the first and of the second sample
  double quadratic, total;
};

inline Weights weights(std::int64_t n, std::int64_t m) {
  const double zz = 1 / (double(n) * double(n - 1)), xx = 1 / (double(m) * double(m - 1)),
               zx = 1 / (double(n) * double(m));
  // From signs s, the statistic is a sum_{i != j} k_ij s_i s_j + b sum_i s_i sum_j k_ij + c sum_ij
  // k_ij. With u = s + b / (2 a) the first term has the second in it, and c - b^2 / (4 a) is left.
  const double a = (zz + xx + 2 * zx) / 4, b = (zz - xx) / 2, shift = b / (2 * a);
  return {shift + 1, shift - 1, a, double(n + m - 1) * zz * xx * zx / (4 * a)};
}

// Points x (batch, N, d), contiguous, n of them labelled 1 in every column of `labels`: words
// (batch, ceil(N / 32), columns), of which bit j of word w of a column is the label of point 32 w +
// j; columns is a multiple of kColumns, and a batch stride of 0 repeats one set of labels.
// values (batch, columns). A number taken from all k_ij changes no value: with `centre` (batch)
// about their mean, the sums are small, and so is what they are rounded by. Where most of k is near
// n_scales, its value at distance 0, k less that is what keeps its digits: a negative centre is
// taken from it.
template <class T>
struct Permutation {
  const T* x;
  const std::uint32_t* labels;
  std::int64_t labels_batch_stride;
  const T* centre;
  std::int64_t batch, N, n, d, columns;
  // Of the pairs, those that are part `part` of `parts`: the values of all parts add to those of
  // all pairs.
  std::int64_t part, parts;
  Family family;
  const double* scales;  // host memory; on a GPU at most kMaxScales
  int n_scales;
  double* values;
  int threads;
  void* workspace;  // on a GPU, permutation_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

constexpr int kColumns = 32;

// labels (batch, ceil(N / 32), columns): 1 in column 0 for the first n points, in column 1 ...
// `permutations` for n points drawn at random from the seed of the column, and nowhere else.
struct Draw {
  const std::int64_t* seeds;  // (batch, permutations)
  std::int64_t batch, permutations, N, n, columns;
  std::uint32_t* labels;
  int threads;
  void* workspace;  // unused, like the next: there is no code for GPUs
  void* stream;
};

VIMAE_CPU(permutation_cpu, Permutation<float>)
VIMAE_CPU(permutation_cpu, Permutation<double>)
VIMAE_CPU(draw_cpu, Draw)

// Launches and returns: nothing is allocated, nothing waits.
void permutation_cuda(const Permutation<float>&);
void permutation_cuda(const Permutation<double>&);
std::int64_t permutation_cuda_workspace(const Permutation<float>&);
std::int64_t permutation_cuda_workspace(const Permutation<double>&);

}  // namespace vimae

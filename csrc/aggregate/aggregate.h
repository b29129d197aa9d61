// Log densities of an aggregated Gaussian posterior at z (batch, n, d), for posteriors mean and
// log_var (batch, B, d), and their first gradient.
//
// Everything is in bits: l_ijk = -1/2 log2(2 pi var_jk) - t_ijk^2 with t_ijk = (z_ik - mean_jk)
// s_jk and s_jk = sqrt(log2(e) / (2 var_jk)). NaN or infinity in the data makes NaN.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace vimae {

// w_ij: 1 / B, 1 / (B N) or, for n <= B, with M = B - 1: 1 / N at j = i, (N - M) / (N M) at
// j = (i + 1) mod B and 1 / M elsewhere; N is the size of the data set.
enum class Weighting { uniform, mws, mss };

template <class T>
struct Aggregate {
  const T* z;
  const T* mean;
  const T* log_var;
  // Rows are contiguous; a batch stride of 0 repeats one problem's numbers.
  std::int64_t z_batch_stride, mean_batch_stride, log_var_batch_stride;
  std::int64_t batch, n, B, d;
  Weighting weighting;
  std::int64_t dataset_size;
  // Outputs, contiguous: joint (batch, n) and marginal (batch, n, d) in nats. The joint is float64
  // for every T: at d = 4096 it is in the thousands, and the gradient exponentiates it.
  double* joint;
  T* marginal;
  // (batch, n, d), for the gradient: peak_ik = max_j l_ijk, exactly as computed, and
  // total_ik = sum_j w_ij 2^(l_ijk - peak_ik). Their relation to l is exact where the marginal's,
  // far from every mean, has lost all digits to rounding.
  T* peak;
  T* total;
  int threads;
  void* workspace;  // on a GPU, aggregate_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

// With P_ij = g_joint_i w_ij exp(sum_k l_ijk - joint_i), Q_ijk = g_marginal_ik w_ij 2^(l_ijk -
// peak_ik) / total_ik, R = P + Q and u_ijk = (z_ik - mean_jk) / var_jk: dz_ik = -sum_j R u,
// dmean_jk = sum_i R u, dlog_var_jk = sum_i R (u (z_ik - mean_jk) - 1) / 2.
template <class T>
struct AggregateGradient {
  const T* z;
  const T* mean;
  const T* log_var;
  std::int64_t z_batch_stride, mean_batch_stride, log_var_batch_stride;
  std::int64_t batch, n, B, d;
  Weighting weighting;
  std::int64_t dataset_size;
  // Contiguous: what the forward pass made, and the upstream gradients.
  const double* joint;
  const T* peak;
  const T* total;
  const T* g_joint;     // (batch, n)
  const T* g_marginal;  // (batch, n, d)
  // Outputs, contiguous.
  T* dz;
  T* dmean;
  T* dlog_var;
  int threads;
  void* workspace;  // on a GPU, aggregate_gradient_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

// With n samples, sum_i (joint_i - sum_k marginal_ik) / n and its gradients, in one call: a block
// of samples meets all posteriors, and what it has of a coordinate's exponentials is used while it
// is in the cache.
template <class T>
struct TotalCorrelation {
  const T* z;
  const T* mean;
  const T* log_var;
  std::int64_t z_batch_stride, mean_batch_stride, log_var_batch_stride;
  std::int64_t batch, n, B, d;
  Weighting weighting;
  std::int64_t dataset_size;
  T* value;  // (batch)
  // All null for the value alone, or contiguous: (batch, n, d) and twice (batch, B, d).
  T* dz;
  T* dmean;
  T* dlog_var;
  int threads;
  void* workspace;  // unused, like the next: there is no code for GPUs
  void* stream;
};

VIMAE_CPU(aggregate_cpu, Aggregate<float>)
VIMAE_CPU(aggregate_cpu, Aggregate<double>)
VIMAE_CPU(aggregate_gradient_cpu, AggregateGradient<float>)
VIMAE_CPU(aggregate_gradient_cpu, AggregateGradient<double>)
VIMAE_CPU(total_correlation_cpu, TotalCorrelation<float>)
VIMAE_CPU(total_correlation_cpu, TotalCorrelation<double>)

// Launch and return: nothing is allocated, nothing waits.
void aggregate_cuda(const Aggregate<float>&);
void aggregate_cuda(const Aggregate<double>&);
std::int64_t aggregate_cuda_workspace(const Aggregate<float>&);
std::int64_t aggregate_cuda_workspace(const Aggregate<double>&);
void aggregate_gradient_cuda(const AggregateGradient<float>&);
void aggregate_gradient_cuda(const AggregateGradient<double>&);
std::int64_t aggregate_gradient_cuda_workspace(const AggregateGradient<float>&);
std::int64_t aggregate_gradient_cuda_workspace(const AggregateGradient<double>&);

}  // namespace vimae

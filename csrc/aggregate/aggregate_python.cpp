#include "aggregate/aggregate.h"

#include "common/python.h"

namespace {

using vimae::Address;

vimae::Weighting weighting_of(const std::string& name) {
  return name == "mss"   ? vimae::Weighting::mss
         : name == "mws" ? vimae::Weighting::mws
                         : vimae::Weighting::uniform;
}

template <class T>
void aggregate_cpu(Address z, Address mean, Address log_var, std::int64_t z_batch_stride,
                   std::int64_t mean_batch_stride, std::int64_t log_var_batch_stride,
                   std::int64_t batch, std::int64_t n, std::int64_t B, std::int64_t d,
                   const std::string& weighting, std::int64_t dataset_size, Address joint,
                   Address marginal, Address peak, Address total, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::Aggregate<T> args{at(z),
                                 at(mean),
                                 at(log_var),
                                 z_batch_stride,
                                 mean_batch_stride,
                                 log_var_batch_stride,
                                 batch,
                                 n,
                                 B,
                                 d,
                                 weighting_of(weighting),
                                 dataset_size,
                                 reinterpret_cast<double*>(joint),
                                 at(marginal),
                                 at(peak),
                                 at(total),
                                 threads};
#define VIMAE_CALL aggregate_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

template <class T>
void aggregate_gradient_cpu(Address z, Address mean, Address log_var, std::int64_t z_batch_stride,
                            std::int64_t mean_batch_stride, std::int64_t log_var_batch_stride,
                            std::int64_t batch, std::int64_t n, std::int64_t B, std::int64_t d,
                            const std::string& weighting, std::int64_t dataset_size, Address joint,
                            Address peak, Address total, Address g_joint, Address g_marginal,
                            Address dz, Address dmean, Address dlog_var, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::AggregateGradient<T> args{at(z),
                                         at(mean),
                                         at(log_var),
                                         z_batch_stride,
                                         mean_batch_stride,
                                         log_var_batch_stride,
                                         batch,
                                         n,
                                         B,
                                         d,
                                         weighting_of(weighting),
                                         dataset_size,
                                         reinterpret_cast<const double*>(joint),
                                         at(peak),
                                         at(total),
                                         at(g_joint),
                                         at(g_marginal),
                                         at(dz),
                                         at(dmean),
                                         at(dlog_var),
                                         threads};
#define VIMAE_CALL aggregate_gradient_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

template <class T>
void total_correlation_cpu(Address z, Address mean, Address log_var, std::int64_t z_batch_stride,
                           std::int64_t mean_batch_stride, std::int64_t log_var_batch_stride,
                           std::int64_t batch, std::int64_t n, std::int64_t B, std::int64_t d,
                           const std::string& weighting, std::int64_t dataset_size, Address value,
                           Address dz, Address dmean, Address dlog_var, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::TotalCorrelation<T> args{at(z),
                                        at(mean),
                                        at(log_var),
                                        z_batch_stride,
                                        mean_batch_stride,
                                        log_var_batch_stride,
                                        batch,
                                        n,
                                        B,
                                        d,
                                        weighting_of(weighting),
                                        dataset_size,
                                        at(value),
                                        at(dz),
                                        at(dmean),
                                        at(dlog_var),
                                        threads};
#define VIMAE_CALL total_correlation_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

#ifdef VIMAE_CUDA
template <class T>
std::int64_t aggregate_cuda_workspace(std::int64_t batch, std::int64_t n, std::int64_t B,
                                      std::int64_t d) {
  vimae::AggregateCuda<T> args{};
  args.batch = batch, args.n = n, args.B = B, args.d = d;
  return vimae::aggregate_cuda_workspace(args);
}

template <class T>
void aggregate_cuda(Address z, Address mean, Address log_var, std::int64_t z_batch_stride,
                    std::int64_t mean_batch_stride, std::int64_t log_var_batch_stride,
                    std::int64_t batch, std::int64_t n, std::int64_t B, std::int64_t d,
                    const std::string& weighting, std::int64_t dataset_size, Address joint,
                    Address marginal, Address peak, Address total, Address workspace,
                    Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::aggregate_cuda(vimae::AggregateCuda<T>{
      at(z), at(mean), at(log_var), z_batch_stride, mean_batch_stride, log_var_batch_stride, batch,
      n, B, d, weighting_of(weighting), dataset_size, reinterpret_cast<double*>(joint),
      at(marginal), at(peak), at(total), reinterpret_cast<void*>(workspace),
      reinterpret_cast<void*>(stream)});
}

template <class T>
std::int64_t aggregate_gradient_cuda_workspace(std::int64_t batch, std::int64_t n, std::int64_t B,
                                               std::int64_t d) {
  vimae::AggregateGradientCuda<T> args{};
  args.batch = batch, args.n = n, args.B = B, args.d = d;
  return vimae::aggregate_gradient_cuda_workspace(args);
}

template <class T>
void aggregate_gradient_cuda(Address z, Address mean, Address log_var, std::int64_t z_batch_stride,
                             std::int64_t mean_batch_stride, std::int64_t log_var_batch_stride,
                             std::int64_t batch, std::int64_t n, std::int64_t B, std::int64_t d,
                             const std::string& weighting, std::int64_t dataset_size, Address joint,
                             Address peak, Address total, Address g_joint, Address g_marginal,
                             Address dz, Address dmean, Address dlog_var, Address workspace,
                             Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::aggregate_gradient_cuda(
      vimae::AggregateGradientCuda<T>{at(z),
                                      at(mean),
                                      at(log_var),
                                      z_batch_stride,
                                      mean_batch_stride,
                                      log_var_batch_stride,
                                      batch,
                                      n,
                                      B,
                                      d,
                                      weighting_of(weighting),
                                      dataset_size,
                                      reinterpret_cast<const double*>(joint),
                                      at(peak),
                                      at(total),
                                      at(g_joint),
                                      at(g_marginal),
                                      at(dz),
                                      at(dmean),
                                      at(dlog_var),
                                      reinterpret_cast<void*>(workspace),
                                      reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "aggregate_cpu", aggregate_cpu<float>, aggregate_cpu<double>);
  both(m, "aggregate_gradient_cpu", aggregate_gradient_cpu<float>, aggregate_gradient_cpu<double>);
  both(m, "total_correlation_cpu", total_correlation_cpu<float>, total_correlation_cpu<double>);
#ifdef VIMAE_CUDA
  both(m, "aggregate_cuda_workspace", aggregate_cuda_workspace<float>,
       aggregate_cuda_workspace<double>);
  both(m, "aggregate_cuda", aggregate_cuda<float>, aggregate_cuda<double>);
  both(m, "aggregate_gradient_cuda_workspace", aggregate_gradient_cuda_workspace<float>,
       aggregate_gradient_cuda_workspace<double>);
  both(m, "aggregate_gradient_cuda", aggregate_gradient_cuda<float>,
       aggregate_gradient_cuda<double>);
#endif
}

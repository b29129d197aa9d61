#include "gumbel/gumbel.h"

#include "common/pages.h"
#include "common/python.h"

namespace {

using vimae::Address;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
void gumbel_cpu(Address logits, Address seed, std::int64_t batch, std::int64_t K,
                std::int64_t seeds, double tau, Address tau_rows, std::int64_t tau_stride,
                Address soft, Address one_hot, int threads) {
  const vimae::Gumbel<T> args{
      at<T>(logits), at<std::int64_t>(seed), batch,  K, seeds, {tau, at<T>(tau_rows), tau_stride},
      at<T>(soft),   at<T>(one_hot),         threads};
  for (T* out : {args.soft, args.one_hot})
    if (out) vimae::prefer_huge_pages(out, batch * K * std::int64_t(sizeof(T)));
#define VIMAE_CALL gumbel_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

template <class T>
void gumbel_backward_cpu(Address sample, Address gradient, std::int64_t batch, std::int64_t K,
                         double tau, Address tau_rows, std::int64_t tau_stride, Address out,
                         int threads) {
  const vimae::GumbelBackward<T> args{
      at<T>(sample), at<T>(gradient), batch, K, {tau, at<T>(tau_rows), tau_stride},
      at<T>(out),    threads};
  vimae::prefer_huge_pages(args.out, batch * K * std::int64_t(sizeof(T)));
#define VIMAE_CALL gumbel_backward_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

#ifdef VIMAE_CUDA
template <class T>
void gumbel_cuda(Address logits, Address seed, std::int64_t batch, std::int64_t K,
                 std::int64_t seeds, double tau, Address tau_rows, std::int64_t tau_stride,
                 Address soft, Address one_hot, Address, Address stream) {
  vimae::gumbel_cuda(vimae::GumbelCuda<T>{at<T>(logits),
                                          at<std::int64_t>(seed),
                                          batch,
                                          K,
                                          seeds,
                                          {tau, at<T>(tau_rows), tau_stride},
                                          at<T>(soft),
                                          at<T>(one_hot),
                                          at<void>(stream)});
}

template <class T>
void gumbel_backward_cuda(Address sample, Address gradient, std::int64_t batch, std::int64_t K,
                          double tau, Address tau_rows, std::int64_t tau_stride, Address out,
                          Address, Address stream) {
  vimae::gumbel_backward_cuda(vimae::GumbelBackwardCuda<T>{at<T>(sample),
                                                           at<T>(gradient),
                                                           batch,
                                                           K,
                                                           {tau, at<T>(tau_rows), tau_stride},
                                                           at<T>(out),
                                                           at<void>(stream)});
}

std::int64_t no_workspace() { return 0; }
#endif

}  // namespace

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "gumbel_cpu", gumbel_cpu<float>, gumbel_cpu<double>);
  both(m, "gumbel_backward_cpu", gumbel_backward_cpu<float>, gumbel_backward_cpu<double>);
#ifdef VIMAE_CUDA
  both(m, "gumbel_cuda_workspace", no_workspace, no_workspace);
  both(m, "gumbel_cuda", gumbel_cuda<float>, gumbel_cuda<double>);
  both(m, "gumbel_backward_cuda_workspace", no_workspace, no_workspace);
  both(m, "gumbel_backward_cuda", gumbel_backward_cuda<float>, gumbel_backward_cuda<double>);
#endif
}

#include "gumbel/gumbel.h"

#include "common/pages.h"
#include "common/python.h"

namespace {

using vimae::Address;

template <class T>
void gumbel_cpu(Address logits, Address seed, Address gradient, std::int64_t batch, std::int64_t K,
                std::int64_t seeds, double tau, bool hard, Address out, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::Gumbel<T> args{at(logits),
                              reinterpret_cast<const std::int64_t*>(seed),
                              at(gradient),
                              batch,
                              K,
                              seeds,
                              tau,
                              hard,
                              at(out),
                              threads};
  vimae::prefer_huge_pages(args.out, batch * K * std::int64_t(sizeof(T)));
#define VIMAE_CALL gumbel_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

template <class T>
void gumbel_backward_cpu(Address sample, Address gradient, std::int64_t batch, std::int64_t K,
                         double tau, Address out, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::GumbelBackward<T> args{at(sample), at(gradient), batch, K, tau, at(out), threads};
  vimae::prefer_huge_pages(args.out, batch * K * std::int64_t(sizeof(T)));
#define VIMAE_CALL gumbel_backward_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

#ifdef VIMAE_CUDA
template <class T>
void gumbel_cuda(Address logits, Address seed, Address gradient, std::int64_t batch, std::int64_t K,
                 std::int64_t seeds, double tau, bool hard, Address out, Address, Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::gumbel_cuda(vimae::GumbelCuda<T>{at(logits), reinterpret_cast<const std::int64_t*>(seed),
                                          at(gradient), batch, K, seeds, tau, hard, at(out),
                                          reinterpret_cast<void*>(stream)});
}

template <class T>
void gumbel_backward_cuda(Address sample, Address gradient, std::int64_t batch, std::int64_t K,
                          double tau, Address out, Address, Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::gumbel_backward_cuda(vimae::GumbelBackwardCuda<T>{
      at(sample), at(gradient), batch, K, tau, at(out), reinterpret_cast<void*>(stream)});
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

#include "stein/stein.h"

#include "common/python.h"

namespace {

using vimae::Address;

template <class T>
void stein_cpu(Address z, Address score, std::int64_t batch, std::int64_t n, std::int64_t d,
               bool rbf, const std::vector<double>& scales, Address phi, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::Stein<T> args{at(z),
                             at(score),
                             batch,
                             n,
                             d,
                             rbf ? vimae::Family::rbf : vimae::Family::imq,
                             scales.data(),
                             int(scales.size()),
                             at(phi),
                             threads};
#define VIMAE_CALL stein_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

#ifdef VIMAE_CUDA
template <class T>
std::int64_t stein_cuda_workspace(std::int64_t batch, std::int64_t n, std::int64_t d, bool score) {
  static T there;
  vimae::SteinCuda<T> args{};
  args.batch = batch, args.n = n, args.d = d, args.score = score ? &there : nullptr;
  return vimae::stein_cuda_workspace(args);
}

template <class T>
void stein_cuda(Address z, Address score, std::int64_t batch, std::int64_t n, std::int64_t d,
                bool rbf, const std::vector<double>& scales, Address phi, Address workspace,
                Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::stein_cuda(vimae::SteinCuda<T>{
      at(z), at(score), batch, n, d, rbf ? vimae::Family::rbf : vimae::Family::imq, scales.data(),
      int(scales.size()), at(phi), reinterpret_cast<void*>(workspace),
      reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "stein_cpu", stein_cpu<float>, stein_cpu<double>);
#ifdef VIMAE_CUDA
  both(m, "stein_cuda_workspace", stein_cuda_workspace<float>, stein_cuda_workspace<double>);
  both(m, "stein_cuda", stein_cuda<float>, stein_cuda<double>);
#endif
}

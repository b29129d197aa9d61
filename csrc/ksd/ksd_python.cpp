#include "ksd/ksd.h"

#include "common/python.h"

namespace {

using vimae::Address;

template <class T>
void ksd_cpu(Address z, Address score, std::int64_t batch, std::int64_t n, std::int64_t d, bool rbf,
             const std::vector<double>& scales, bool unbiased, Address value, Address dz,
             Address dscore, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::KSD<T> args{at(z),
                           at(score),
                           batch,
                           n,
                           d,
                           rbf ? vimae::Family::rbf : vimae::Family::imq,
                           scales.data(),
                           int(scales.size()),
                           unbiased,
                           at(value),
                           at(dz),
                           at(dscore),
                           threads};
#define VIMAE_CALL ksd_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

#ifdef VIMAE_CUDA
template <class T>
std::int64_t ksd_cuda_workspace(std::int64_t batch, std::int64_t n, std::int64_t d, bool score,
                                bool dz, bool dscore) {
  static T there;
  vimae::KSDCuda<T> args{};
  args.batch = batch, args.n = n, args.d = d, args.score = score ? &there : nullptr;
  args.dz = dz ? &there : nullptr, args.dscore = dscore ? &there : nullptr;
  return vimae::ksd_cuda_workspace(args);
}

template <class T>
void ksd_cuda(Address z, Address score, std::int64_t batch, std::int64_t n, std::int64_t d,
              bool rbf, const std::vector<double>& scales, bool unbiased, Address value, Address dz,
              Address dscore, Address workspace, Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::ksd_cuda(vimae::KSDCuda<T>{
      at(z), at(score), batch, n, d, rbf ? vimae::Family::rbf : vimae::Family::imq, scales.data(),
      int(scales.size()), unbiased, at(value), at(dz), at(dscore),
      reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "ksd_cpu", ksd_cpu<float>, ksd_cpu<double>);
#ifdef VIMAE_CUDA
  both(m, "ksd_cuda_workspace", ksd_cuda_workspace<float>, ksd_cuda_workspace<double>);
  both(m, "ksd_cuda", ksd_cuda<float>, ksd_cuda<double>);
#endif
}

#include "permutation/permutation.h"

#include "common/python.h"

namespace {

using vimae::Address;

template <class T>
void permutation_cpu(Address x, Address labels, std::int64_t labels_batch_stride, Address centre,
                     std::int64_t batch, std::int64_t N, std::int64_t n, std::int64_t d,
                     std::int64_t columns, bool rbf, const std::vector<double>& scales,
                     Address values, int threads) {
  const vimae::Permutation<T> args{reinterpret_cast<const T*>(x),
                                   reinterpret_cast<const std::uint32_t*>(labels),
                                   labels_batch_stride,
                                   reinterpret_cast<const T*>(centre),
                                   batch,
                                   N,
                                   n,
                                   d,
                                   columns,
                                   rbf ? vimae::Family::rbf : vimae::Family::imq,
                                   scales.data(),
                                   int(scales.size()),
                                   reinterpret_cast<double*>(values),
                                   threads};
#define VIMAE_CALL permutation_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

void draw_labels_cpu(Address seeds, std::int64_t batch, std::int64_t permutations, std::int64_t N,
                     std::int64_t n, std::int64_t columns, Address labels, int threads) {
  const vimae::Draw args{
      reinterpret_cast<const std::int64_t*>(seeds), batch,  permutations, N, n, columns,
      reinterpret_cast<std::uint32_t*>(labels),     threads};
#define VIMAE_CALL draw_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

#ifdef VIMAE_CUDA
template <class T>
std::int64_t permutation_cuda_workspace(std::int64_t batch, std::int64_t N, std::int64_t columns) {
  vimae::PermutationCuda<T> args{};
  args.batch = batch, args.N = N, args.columns = columns;
  return vimae::permutation_cuda_workspace(args);
}

template <class T>
void permutation_cuda(Address x, Address labels, std::int64_t labels_batch_stride, Address centre,
                      std::int64_t batch, std::int64_t N, std::int64_t n, std::int64_t d,
                      std::int64_t columns, bool rbf, const std::vector<double>& scales,
                      Address values, Address workspace, Address stream) {
  vimae::permutation_cuda(vimae::PermutationCuda<T>{
      reinterpret_cast<const T*>(x), reinterpret_cast<const std::uint32_t*>(labels),
      labels_batch_stride, reinterpret_cast<const T*>(centre), batch, N, n, d, columns,
      rbf ? vimae::Family::rbf : vimae::Family::imq, scales.data(), int(scales.size()),
      reinterpret_cast<double*>(values), reinterpret_cast<void*>(workspace),
      reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "permutation_cpu", permutation_cpu<float>, permutation_cpu<double>);
  both(m, "draw_labels_cpu", draw_labels_cpu, draw_labels_cpu);
#ifdef VIMAE_CUDA
  both(m, "permutation_cuda_workspace", permutation_cuda_workspace<float>,
       permutation_cuda_workspace<double>);
  both(m, "permutation_cuda", permutation_cuda<float>, permutation_cuda<double>);
#endif
}

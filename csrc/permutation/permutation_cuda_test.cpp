// permutation_cuda, run on the host by testing/cuda_shim.h, against permutation_cpu in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "permutation/permutation.h"
#include "testing/cuda_shim.h"

using namespace vimae;

namespace {

int failures = 0;
bool stop_at_first = false;

template <class T>
void check(std::int64_t batch, std::int64_t n, std::int64_t m, std::int64_t d,
           std::int64_t permutations, Family family, int n_scales, bool shared) {
  const std::int64_t N = n + m, words = (N + 31) / 32,
                     columns = (permutations + kColumns) / kColumns * kColumns;
  std::mt19937_64 random(N + d);
  std::normal_distribution<double> normal;
  std::vector<T> x(batch * N * d);
  for (T& e : x) e = T(normal(random));
  const std::vector<double> exact(x.begin(), x.end());
  const std::int64_t sets = shared ? 1 : batch;
  std::vector<std::int64_t> seeds(sets * permutations);
  for (std::int64_t& seed : seeds) seed = std::int64_t(random());
  std::vector<std::uint32_t> labels(sets * words * columns);
  draw_cpu(Draw{seeds.data(), sets, permutations, N, n, columns, labels.data(), 1});
  const double scales[] = {2.0 * double(d), 0.5 * double(d), 7};
  const std::vector<T> centre(batch, T(0.5 * n_scales));
  const std::vector<double> exact_centre(centre.begin(), centre.end());
  const std::int64_t stride = shared ? 0 : words * columns;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> want(batch * columns, nan), got(batch * columns, nan);
  permutation_cpu(Permutation<double>{exact.data(), labels.data(), stride, exact_centre.data(),
                                      batch, N, n, d, columns, 0, 1, family, scales, n_scales,
                                      want.data(), 1});
  Permutation<T> a{x.data(), labels.data(), stride, centre.data(), batch,     N, n, d, columns, 0,
                   1,        family,        scales, n_scales,      got.data()};
  std::vector<char> workspace(permutation_cuda_workspace(a), char(0xff));
  a.workspace = workspace.data();
  permutation_cuda(a);
  double error = 0;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t c = 0; c <= permutations; ++c) {
      const double e = std::fabs(got[b * columns + c] - want[b * columns + c]);
      error = e > error || std::isnan(e) ? e : error;
    }
  if (!(error <=
        100 * double(std::numeric_limits<T>::epsilon()) * n_scales / double(n < m ? n : m))) {
    std::printf("FAILED (%d, %d, %d, %d) %d permutations: %.3g\n", int(batch), int(n), int(m),
                int(d), int(permutations), error);
    ++failures;
    if (stop_at_first) std::exit(1);
  }
}

template <class T>
void check_all() {
  check<T>(1, 2, 2, 1, 1, Family::imq, 1, true);
  check<T>(2, 2, 3, 3, 40, Family::rbf, 3, true);
  check<T>(2, 33, 30, 37, 31, Family::imq, 2, false);
  check<T>(1, 20, 50, 5, 200, Family::rbf, 1, true);
}

}  // namespace

int main(int argc, char** argv) {
  stop_at_first = cuda_shim::set_fault(argc, argv);
  using cuda_shim::Order;
  try {
    for (Order order : {Order::forward, Order::reverse, Order::shuffled}) {
      cuda_shim::set_order(order, 1);
      check_all<float>();
      check_all<double>();
    }
    cuda_shim::set_order(Order::forward);
    // More tiles than blocks.
    check<float>(700, 40, 30, 3, 3, Family::imq, 1, true);
  } catch (const cuda_shim::Error& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}

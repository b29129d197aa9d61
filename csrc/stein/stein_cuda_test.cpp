// stein_cuda and ksd_cuda, run on the host by testing/cuda_shim.h, against stein_cpu and ksd_cpu in
// double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ksd/ksd.h"
#include "stein/stein.h"
#include "testing/cuda_shim.h"

using namespace vimae;

namespace {

int failures = 0;
bool stop_at_first = false;

template <class T>
void on_cuda(Stein<T> args) {
  std::vector<char> workspace(stein_cuda_workspace(args), char(0xff));
  args.workspace = workspace.data();
  stein_cuda(args);
}

template <class T>
void on_cuda(KSD<T> args) {
  std::vector<char> workspace(ksd_cuda_workspace(args), char(0xff));
  args.workspace = workspace.data();
  ksd_cuda(args);
}

// A buffer of the exact size on the heap, so that ASan sees its ends; all bits set is NaN.
template <class T>
std::vector<T> poisoned(std::int64_t size) {
  std::vector<T> v(size);
  std::memset(v.data(), 0xff, size * sizeof(T));
  return v;
}

struct Problem {
  std::int64_t batch, n, d;
  Family family;
  int n_scales;
  bool unbiased = true;
  double shift = 0;
};

// Of each problem: errors are relative to its largest element, or to `unit`.
template <class T>
void close(const Problem& p, const std::string& what, const std::vector<T>& got,
           const std::vector<double>& want, double tolerance, double unit = 0) {
  const std::size_t size = want.size() / p.batch;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    double error = 0, scale = unit;
    for (std::size_t i = b * size; i < (b + 1) * size; ++i) {
      const double e = std::fabs(double(got[i]) - want[i]);
      error = e > error || std::isnan(e) ? e : error;
      if (!unit) scale = std::fmax(scale, std::fabs(want[i]));
    }
    if (!(error <= tolerance * scale)) {
      std::printf("FAILED %s %s %s (%d, %d, %d) scales %d%s of problem %d: error %.3g of %.3g\n",
                  what.c_str(), sizeof(T) == 4 ? "float" : "double",
                  p.family == Family::imq ? "imq" : "rbf", int(p.batch), int(p.n), int(p.d),
                  p.n_scales, p.unbiased ? " unbiased" : "", int(b), error, scale);
      ++failures;
      if (stop_at_first) std::exit(1);
    }
  }
}

// What both structs of a call have.
template <class Call, class T>
Call call_of(const Problem& p, const std::vector<T>& z, const std::vector<T>& score,
             const double* scales) {
  Call a{};
  a.x = z.data();
  const auto own = score.empty() ? nullptr : score.data();
  if constexpr (std::is_same_v<Call, KSD<T>>)
    a.score_x = own;
  else
    a.score = own, a.m = p.n;
  a.batch = p.batch, a.n = p.n, a.d = p.d;
  a.family = p.family, a.scales = scales, a.n_scales = p.n_scales;
  return a;
}

template <class T>
void check(const Problem& p, bool with_score) {
  std::mt19937_64 random(p.n * 1000 + p.d);
  std::normal_distribution<double> normal;
  const std::int64_t size = p.batch * p.n * p.d;
  std::vector<T> z(size), score(with_score ? size : 0);
  double largest = 0;  // |score|^2
  for (std::int64_t i = 0; i < size; ++i) {
    z[i] = T(1.2 * normal(random) + 0.3 + p.shift);
    if (with_score) score[i] = T(normal(random) - 0.7 * double(z[i]));
  }
  for (std::int64_t i = 0; i < p.batch * p.n; ++i) {
    double sum = 0;
    for (std::int64_t k = 0; k < p.d; ++k) {
      const double v = double(with_score ? score[i * p.d + k] : z[i * p.d + k]);
      sum += v * v;
    }
    largest = std::fmax(largest, sum);
  }
  const std::vector<double> exact(z.begin(), z.end()), exact_score(score.begin(), score.end());
  const double scales[] = {2.0 * double(p.d), 0.5 * double(p.d), 7};
  const double eps = double(std::numeric_limits<T>::epsilon());
  const std::string kind = with_score ? " with a score" : " of the normal";

  std::vector<double> want = poisoned<double>(size);
  auto truth = call_of<Stein<double>>(p, exact, exact_score, scales);
  truth.phi = want.data(), truth.threads = 1;
  stein_cpu(truth);
  std::vector<T> got = poisoned<T>(size);
  auto call = call_of<Stein<T>>(p, z, score, scales);
  call.phi = got.data();
  on_cuda(call);
  close(p, "phi" + kind, got, want, 100 * eps);

  std::vector<double> value = poisoned<double>(p.batch), dz = poisoned<double>(size), dscore;
  auto ksd = call_of<KSD<double>>(p, exact, exact_score, scales);
  ksd.unbiased = p.unbiased, ksd.value = value.data(), ksd.dx = dz.data(), ksd.threads = 1;
  if (with_score) dscore = poisoned<double>(size), ksd.dscore_x = dscore.data();
  ksd_cpu(ksd);
  // Rounding of u is that of the product of two scores.
  const double unit = p.n_scales * (largest + 2);
  for (int outputs = 0; outputs < (with_score ? 3 : 2); ++outputs) {
    std::vector<T> got_value = poisoned<T>(p.batch), got_dz, got_dscore;
    auto a = call_of<KSD<T>>(p, z, score, scales);
    a.unbiased = p.unbiased, a.value = got_value.data();
    if (outputs > 0) got_dz = poisoned<T>(size), a.dx = got_dz.data();
    if (outputs > 1) got_dscore = poisoned<T>(size), a.dscore_x = got_dscore.data();
    on_cuda(a);
    close(p, "value" + kind, got_value, value, 10 * eps, unit);
    if (outputs > 0) close(p, "dz" + kind, got_dz, dz, 500 * eps);
    if (outputs > 1) close(p, "dscore" + kind, got_dscore, dscore, 100 * eps);
  }
}

template <class T>
void check(const Problem& p) {
  check<T>(p, false);
  check<T>(p, true);
}

// Small problems of every kind, for every order of threads; in other orders than the first, one of
// either family.
template <class T>
void check_small(bool first) {
  for (Family family : {Family::imq, Family::rbf})
    for (bool unbiased : {true, false}) {
      if (!first && unbiased != (family == Family::imq)) continue;
      check<T>({1, 2, 1, family, 1, unbiased});
      check<T>({3, 35, 3, family, 3, unbiased});
      check<T>({2, 33, 17, family, unbiased ? 3 : 1, unbiased});
    }
  check<T>({1, 65, 5, Family::imq, 1});
  check<T>({2, 66, 10, Family::rbf, 1});
}

// Several blocks, splits and tiles: once is enough, and of some in float.
void check_large() {
  check<float>({1, 300, 2, Family::imq, 1, false});
  check<float>({1, 257, 7, Family::rbf, 2});
  check<float>({1, 131, 35, Family::imq, 1, true, 100});
  check<float>({1, 2, 70, Family::rbf, 2, false});
  check<double>({1, 131, 8, Family::imq, 1, true, 100});
  check<double>({1, 257, 2, Family::rbf, 1, false});
  check<double>({1, 2, 70, Family::rbf, 2, false});
}

void check_all() {
  using cuda_shim::Order;
  cuda_shim::set_order(Order::forward, 0);
  check_small<float>(true);
  check_small<double>(true);
  check_large();
  cuda_shim::set_order(Order::reverse, 0);
  check_small<float>(false);
  check_small<double>(false);
  cuda_shim::set_order(Order::shuffled, 1);
  check_small<float>(false);
}

}  // namespace

int main(int argc, char** argv) {
  stop_at_first = cuda_shim::set_fault(argc, argv);
  try {
    check_all();
  } catch (const cuda_shim::Error& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}

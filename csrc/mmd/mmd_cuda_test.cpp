// mmd_cuda, run on the host by testing/cuda_shim.h, against mmd_cpu in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "mmd/mmd.h"
#include "testing/cuda_shim.h"

using namespace vimae;

namespace {

int failures = 0;
bool stop_at_first = false;

// A buffer of the exact size on the heap, so that ASan sees its ends; all bits set is NaN.
template <class T>
std::vector<T> poisoned(std::int64_t size) {
  std::vector<T> v(size);
  if (size) std::memset(v.data(), 0xff, size * sizeof(T));
  return v;
}

// Of each problem: errors are relative to the largest element of `want`, or to `unit`.
template <class T>
void close(const std::string& what, const std::vector<T>& got, const std::vector<double>& want,
           std::int64_t batch, double tolerance, double unit = 0) {
  const std::size_t size = want.size() / batch;
  for (std::int64_t b = 0; b < batch; ++b) {
    double error = 0, scale = unit;
    for (std::size_t i = b * size; i < (b + 1) * size; ++i) {
      const double e = std::fabs(double(got[i]) - want[i]);
      error = e > error || std::isnan(e) ? e : error;
      if (!unit) scale = std::fmax(scale, std::fabs(want[i]));
    }
    if (!(error <= tolerance * scale)) {
      std::printf("FAILED %s of problem %d: error %.3g of %.3g\n", what.c_str(), int(b), error,
                  scale);
      ++failures;
      if (stop_at_first) std::exit(1);
    }
  }
}

struct Problem {
  std::int64_t batch, n, m, d;
  Family family;
  int n_scales;
  bool unbiased;
  double shift = 0;
};

template <class T>
struct Results {
  std::vector<T> value, dx, dy;
};

// What is computed: any of value, dx and dy, or the Hessian-vector product.
enum Outputs { value_only = 0, with_dx = 1, with_dy = 2, both = 3, hessian = 7 };

template <class T>
struct Data {
  std::vector<T> x, y, vx, vy;
};

template <class Call, class T>
Call call_of(const Problem& p, const Data<T>& in, const double* scales, Outputs outputs,
             Results<T>& out) {
  Call a{};
  // All problems of the batch share y: its batch stride is 0.
  a.x = in.x.data(), a.y = in.y.data(), a.x_batch_stride = p.n * p.d, a.y_batch_stride = 0;
  a.batch = p.batch, a.n = p.n, a.m = p.m, a.d = p.d;
  a.family = p.family, a.scales = scales, a.n_scales = p.n_scales, a.unbiased = p.unbiased;
  if (outputs == hessian)
    a.vx = in.vx.data(), a.vy = in.vy.data();
  else
    out.value = poisoned<T>(p.batch), a.value = out.value.data();
  if (outputs & with_dx) out.dx = poisoned<T>(p.batch * p.n * p.d), a.dx = out.dx.data();
  if (outputs & with_dy) out.dy = poisoned<T>(p.batch * p.m * p.d), a.dy = out.dy.data();
  return a;
}

template <class T>
Results<T> on_cuda(const Problem& p, const Data<T>& in, const double* scales, Outputs outputs,
                   double* pairs = nullptr) {
  Results<T> out;
  MMD<T> a = call_of<MMD<T>>(p, in, scales, outputs, out);
  a.pairs = pairs;
  std::vector<char> workspace = poisoned<char>(mmd_cuda_workspace(a));
  a.workspace = workspace.data();
  mmd_cuda(a);
  return out;
}

Results<double> on_cpu(const Problem& p, const Data<double>& in, const double* scales,
                       Outputs outputs, double* pairs = nullptr) {
  Results<double> out;
  MMD<double> a = call_of<MMD<double>>(p, in, scales, outputs, out);
  a.pairs = pairs;
  a.threads = 1;
  mmd_cpu(a);
  return out;
}

std::string describe(const Problem& p, const char* type, const char* outputs) {
  return std::string(outputs) + " " + type + (p.family == Family::imq ? " imq" : " rbf") + " (" +
         std::to_string(p.batch) + ", " + std::to_string(p.n) + ", " + std::to_string(p.m) + ", " +
         std::to_string(p.d) + ") scales " + std::to_string(p.n_scales) +
         (p.unbiased ? " unbiased" : " biased");
}

// All outputs at once and, at first, every selection of them.
template <class T>
void check(const Problem& p, bool first = true) {
  std::mt19937_64 random(p.n * 1000 + p.d);
  std::normal_distribution<double> normal;
  Data<T> in;
  Data<double> exact;
  const auto draw = [&](std::int64_t count, double at, std::vector<T>& v, std::vector<double>& e) {
    v.resize(count), v.shrink_to_fit();
    for (T& element : v) element = T(normal(random) + at);
    e.assign(v.begin(), v.end());
  };
  draw(p.batch * p.n * p.d, p.shift + 0.3, in.x, exact.x);
  draw(p.m * p.d, p.shift, in.y, exact.y);
  draw(p.batch * p.n * p.d, 0, in.vx, exact.vx);
  draw(p.batch * p.m * p.d, 0, in.vy, exact.vy);
  const double scales[] = {2.0 * double(p.d), 0.5 * double(p.d), 7};
  const double eps = double(std::numeric_limits<T>::epsilon());
  const char* type = sizeof(T) == 4 ? "float" : "double";

  const Results<double> want = on_cpu(p, exact, scales, both);
  const Results<double> want_hessian = on_cpu(p, exact, scales, hessian);
  const auto compare = [&](Outputs outputs, const char* name) {
    const Results<T> got = on_cuda(p, in, scales, outputs);
    const Results<double>& w = outputs == hessian ? want_hessian : want;
    const std::string what = describe(p, type, name);
    if (outputs != hessian)
      close("value: " + what, got.value, w.value, p.batch, 10 * eps, p.n_scales);
    if (outputs & with_dx) close("dx: " + what, got.dx, w.dx, p.batch, 500 * eps);
    if (outputs & with_dy) close("dy: " + what, got.dy, w.dy, p.batch, 500 * eps);
  };
  if (first) {
    compare(value_only, "value");
    compare(with_dx, "value and dx");
    compare(with_dy, "value and dy");
  }
  compare(both, "value and both");
  if (p.unbiased) {
    std::vector<double> mean = poisoned<double>(p.batch), want_mean = mean;
    const Results<double> w = on_cpu(p, exact, scales, both, want_mean.data());
    on_cuda(p, in, scales, value_only, mean.data());
    close("mean: " + describe(p, type, "pairs"), mean, want_mean, p.batch, 10 * eps, p.n_scales);
    const Results<T> got = on_cuda(p, in, scales, both, mean.data());
    const std::string what = describe(p, type, "pairs and both");
    close("mean: " + what, mean, want_mean, p.batch, 10 * eps, p.n_scales);
    close("dx: " + what, got.dx, w.dx, p.batch, 500 * eps);
    close("dy: " + what, got.dy, w.dy, p.batch, 500 * eps);
  }
  // Its kernel does not keep rows in registers, and so many of them would take half a minute.
  if (p.n <= 1024) compare(hessian, "Hessian");
}

// Small problems of every kind, for every order of threads; in other orders than the first, one of
// either family.
template <class T>
void check_small(bool first) {
  for (Family family : {Family::imq, Family::rbf})
    for (bool unbiased : {true, false}) {
      if (!first && unbiased != (family == Family::imq)) continue;
      check<T>({1, 2, 3, 1, family, 1, unbiased}, first);
      check<T>({3, 7, 35, 3, family, 3, unbiased}, first);
      check<T>({2, 33, 31, 17, family, unbiased ? 3 : 1, unbiased}, first);
      check<T>({2, 35, 0, 3, family, 1, unbiased}, first);
    }
  check<T>({2, 33, 0, 18, Family::imq, 3, true}, first);
  check<T>({1, 65, 70, 5, Family::imq, 1, true}, first);
  check<T>({2, 63, 66, 10, Family::rbf, 1, true}, first);
}

// Several blocks, splits and row widths: once is enough, and of two of them in float.
void check_large() {
  check<float>({1, 300, 130, 2, Family::imq, 1, true});
  check<float>({2, 129, 130, 7, Family::rbf, 2, true});
  check<float>({1, 131, 66, 35, Family::imq, 1, true, 100});
  check<double>({1, 131, 66, 3, Family::imq, 1, true, 100});
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
  // In registers, a thread has four rows of more than 1024.
  for (std::int64_t d : {1, 3, 6}) check<float>({1, 1030, 5, d, Family::imq, 1, true}, d == 3);
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

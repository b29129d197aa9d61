// aggregate_cuda, run on the host by testing/cuda_shim.h, against aggregate_cpu in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "aggregate/aggregate.h"
#include "testing/cuda_shim.h"

using namespace vimae;

namespace {

int failures = 0;
bool stop_at_first = false;

// A buffer of the exact size on the heap, so that ASan sees its ends; all bits set is NaN.
template <class T>
std::vector<T> poisoned(std::int64_t size) {
  std::vector<T> v(size);
  std::memset(v.data(), 0xff, size * sizeof(T));
  return v;
}

// Errors are relative to the largest element of `want`, and to `unit` where that is larger.
template <class T>
void close(const std::string& what, const std::vector<T>& got, const std::vector<double>& want,
           double tolerance, double unit = 0) {
  double error = 0, scale = unit;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double e = std::fabs(double(got[i]) - want[i]);
    error = e > error || std::isnan(e) ? e : error;
    scale = std::fmax(scale, std::fabs(want[i]));
  }
  if (!(error <= tolerance * scale)) {
    std::printf("FAILED %s: error %.3g of %.3g\n", what.c_str(), error, scale);
    ++failures;
    if (stop_at_first) std::exit(1);
  }
}

struct Problem {
  std::int64_t batch, n, B, d;
  Weighting weighting = Weighting::uniform;
  double shift = 0;
};

template <class T>
struct Data {
  std::vector<T> z, mean, log_var, g_joint, g_marginal;
};

template <class T>
struct Results {
  std::vector<double> joint;
  std::vector<T> marginal, peak, total, dz, dmean, dlog_var;
};

// All problems of the batch share the posteriors' means: their batch stride is 0.
template <class Call, class T>
Call call_of(const Problem& p, const Data<T>& in) {
  Call a{};
  a.z = in.z.data(), a.mean = in.mean.data(), a.log_var = in.log_var.data();
  a.z_batch_stride = p.n * p.d, a.mean_batch_stride = 0, a.log_var_batch_stride = p.B * p.d;
  a.batch = p.batch, a.n = p.n, a.B = p.B, a.d = p.d;
  a.weighting = p.weighting, a.dataset_size = 2 * p.B;
  return a;
}

template <class Value, class Gradient, class T, class RunValue, class RunGradient>
Results<T> results(const Problem& p, const Data<T>& in, RunValue run_value,
                   RunGradient run_gradient) {
  const std::int64_t rows = p.batch * p.n * p.d, columns = p.batch * p.B * p.d;
  Results<T> out{poisoned<double>(p.batch * p.n),
                 poisoned<T>(rows),
                 poisoned<T>(rows),
                 poisoned<T>(rows),
                 poisoned<T>(rows),
                 poisoned<T>(columns),
                 poisoned<T>(columns)};
  Value a = call_of<Value>(p, in);
  a.joint = out.joint.data(), a.marginal = out.marginal.data();
  a.peak = out.peak.data(), a.total = out.total.data();
  run_value(a);
  Gradient b = call_of<Gradient>(p, in);
  b.joint = out.joint.data(), b.peak = out.peak.data(), b.total = out.total.data();
  b.g_joint = in.g_joint.data(), b.g_marginal = in.g_marginal.data();
  b.dz = out.dz.data(), b.dmean = out.dmean.data(), b.dlog_var = out.dlog_var.data();
  run_gradient(b);
  return out;
}

template <class T>
Results<T> on_cuda(const Problem& p, const Data<T>& in) {
  return results<Aggregate<T>, AggregateGradient<T>>(
      p, in,
      [](Aggregate<T>& a) {
        std::vector<char> workspace = poisoned<char>(aggregate_cuda_workspace(a));
        a.workspace = workspace.data();
        aggregate_cuda(a);
      },
      [](AggregateGradient<T>& a) {
        std::vector<char> workspace = poisoned<char>(aggregate_gradient_cuda_workspace(a));
        a.workspace = workspace.data();
        aggregate_gradient_cuda(a);
      });
}

Results<double> on_cpu(const Problem& p, const Data<double>& in) {
  return results<Aggregate<double>, AggregateGradient<double>>(
      p, in,
      [](Aggregate<double>& a) {
        a.threads = 1;
        aggregate_cpu(a);
      },
      [](AggregateGradient<double>& a) {
        a.threads = 1;
        aggregate_gradient_cpu(a);
      });
}

template <class T>
void check(const Problem& p) {
  std::mt19937_64 random(p.n * 1000 + p.B * 10 + p.d);
  std::normal_distribution<double> normal;
  Data<T> in;
  Data<double> exact;
  const auto draw = [&](std::int64_t count, double at, double spread, std::vector<T>& v,
                        std::vector<double>& e) {
    v.resize(count), v.shrink_to_fit();
    for (T& element : v) element = T(at + spread * normal(random));
    e.assign(v.begin(), v.end());
  };
  draw(p.batch * p.n * p.d, p.shift, 1, in.z, exact.z);
  draw(p.B * p.d, p.shift + 0.2, 1, in.mean, exact.mean);
  draw(p.batch * p.B * p.d, -1, 1, in.log_var, exact.log_var);
  draw(p.batch * p.n, 0, 1, in.g_joint, exact.g_joint);
  draw(p.batch * p.n * p.d, 0, 1, in.g_marginal, exact.g_marginal);

  const Results<double> want = on_cpu(p, exact);
  const Results<T> got = on_cuda(p, in);
  const double eps = double(std::numeric_limits<T>::epsilon());
  const std::string what = std::string(sizeof(T) == 4 ? "float (" : "double (") +
                           std::to_string(p.batch) + ", " + std::to_string(p.n) + ", " +
                           std::to_string(p.B) + ", " + std::to_string(p.d) + ") weighting " +
                           std::to_string(int(p.weighting));
  close("joint: " + what, got.joint, want.joint, 10 * eps, 1);
  close("marginal: " + what, got.marginal, want.marginal, 10 * eps, 1);
  close("dz: " + what, got.dz, want.dz, 200 * eps);
  close("dmean: " + what, got.dmean, want.dmean, 200 * eps);
  close("dlog_var: " + what, got.dlog_var, want.dlog_var, 200 * eps);
}

// Small problems of every kind, for every order of threads; d = 17 has two chunks of coordinates.
template <class T>
void check_small() {
  check<T>({1, 1, 1, 1});
  check<T>({2, 3, 5, 3});
  check<T>({1, 5, 35, 17, Weighting::mws});
  check<T>({2, 2, 2, 2, Weighting::mss});
  check<T>({1, 35, 35, 17, Weighting::mss});
  check<T>({2, 20, 35, 3, Weighting::mss});  // the first rows of a larger minibatch
}

// Several blocks, stages and splits: once is enough, and of two of them in float.
void check_large() {
  check<float>({1, 530, 270, 2, Weighting::uniform, 100});
  check<float>({2, 150, 700, 3, Weighting::mws});
  check<float>({1, 290, 290, 18, Weighting::mss});
  check<double>({1, 290, 290, 2, Weighting::mss});
}

// A variance of e^-20 far from every mean, in float: the log density is in the hundreds of
// millions, and the posterior nearest to a sample still has all of its weight.
void check_far() {
  const std::vector<float> z{0.5f, -1.25f}, mean{-3, 2}, log_var{-20, -20}, g{1, 1};
  const Problem p{1, 2, 2, 1};
  const Results<float> got = on_cuda<float>(p, {z, mean, log_var, g, g});
  const std::vector<double> want{2 * 1.5 * std::exp(20), -2 * 1.75 * std::exp(20)};
  close("far", got.dz, want, 1e-6);
}

void check_all() {
  using cuda_shim::Order;
  cuda_shim::set_order(Order::forward, 0);
  check_small<float>();
  check_small<double>();
  check_large();
  for (auto [order, seed] : {std::pair{Order::reverse, 0u}, {Order::shuffled, 1u}}) {
    cuda_shim::set_order(order, seed);
    check_small<float>();
    check_small<double>();
  }
  // The joint log density is in the hundreds.
  check<float>({1, 5, 5, 500});
  // So many problems that no sweep is split: it passes through shared memory in more than one
  // stage.
  check<float>({20, 1, 140, 1});
  check<float>({20, 140, 1, 1});
  check_far();
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

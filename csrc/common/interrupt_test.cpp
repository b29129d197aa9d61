// A call is given up when it is told to, on one thread and on many, and the next one is right.
#include "common/interrupt.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "mmd/mmd.h"

using namespace vimae;

namespace {

int failures = 0;
std::atomic<int> asked{0};

bool on_the_second_question() { return ++asked >= 2; }

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

// Whether it was given up.
bool run(std::int64_t batch, std::int64_t n, int threads, std::vector<float>& dx) {
  const std::int64_t d = 3;
  std::vector<float> x(batch * n * d), value(batch);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(i * i % 101) / 50;
  dx.assign(x.size(), -1);
  const double scale = 6;
  try {
    mmd_cpu(MMD<float>{x.data(), x.data(), n * d, n * d, nullptr, nullptr, batch, n, n, d,
                       Family::imq, &scale, 1, true, value.data(), dx.data(), nullptr, nullptr,
                       threads});
  } catch (const Interrupted&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  std::vector<float> want, got;
  for (const int threads : {1, 2, 5})
    for (const std::int64_t batch : {1, 2, 50}) {
      const std::int64_t n = batch < 50 ? 2000 : 400;
      expect(!run(batch, n, threads, want), "nobody to ask");
      asked = 0;
      set_interruption(on_the_second_question);
      expect(run(batch, n, threads, got) && asked >= 2, "given up");
      set_interruption([] { return false; });
      expect(!run(batch, n, threads, got) && got == want, "asked, and right");
      set_interruption(nullptr);
    }
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}

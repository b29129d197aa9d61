// GFLOP/s of fused multiply-adds in registers on argv[1] threads: the best of several short runs.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float Vec __attribute__((vector_size(BYTES)));
constexpr int kChains = 12;

int main(int, char** argv) {
  const int threads = std::atoi(argv[1]);
  const long rounds = 20000000;
  double best = 0, sink = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : sink)
    {
      Vec a[kChains], x = Vec{} + 0.999f, y = Vec{} + 1e-3f;
      // Different chains, or the compiler would compute one for all.
      for (int c = 0; c < kChains; ++c) a[c] = Vec{} + float(c);
      for (long i = 0; i < rounds; ++i)
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) a[c] = a[c] * x + y;
      for (int c = 0; c < kChains; ++c) sink += a[c][0];
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double flops = 2.0 * threads * rounds * kChains * (BYTES / sizeof(float));
    if (flops / seconds > best) best = flops / seconds;
  }
  std::printf("%.1f\n", best / 1e9);
  return sink == 12345;  // the sums must be computed
}

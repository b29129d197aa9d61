// The shim itself: what works on a GPU works here, and planted faults are found. `--case=<name>`
// runs one fault that ends in a sanitizer's report.
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/launch.cuh"

using vimae::launch;

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED %s\n", what.c_str());
  ++failures;
}

constexpr int kTile = 8;

// out = in^T, both kTile x kTile times the grid; a block has one warp, which makes two passes.
template <class T, bool Barrier>
__global__ void __launch_bounds__(32) transpose(const T* __restrict__ in, T* __restrict__ out) {
  __shared__ T tile[kTile][kTile + 1];
  const int n = kTile * gridDim.x;
  const int x0 = blockIdx.x * kTile, y0 = blockIdx.y * kTile;
  for (int i = threadIdx.x; i < kTile * kTile; i += 32)
    tile[i / kTile][i % kTile] = in[(y0 + i / kTile) * n + x0 + i % kTile];
  if (Barrier) __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += 32)
    out[(x0 + i / kTile) * n + y0 + i % kTile] = tile[i % kTile][i / kTile];
}

template <class T, bool Barrier>
bool transposes() {
  const int n = 3 * kTile;
  std::vector<T> in(n * n), out(n * n, T(-1));
  for (int i = 0; i < n * n; ++i) in[i] = T(i);
  launch(transpose<T, Barrier>, dim3(3, 3), 32, nullptr, in.data(), out.data());
  for (int i = 0; i < n * n; ++i)
    if (!(out[i] == in[i % n * n + i / n])) return false;
  return true;
}

// Each block's sum of 4 warps, by shuffles and then through shared memory.
__global__ void sum_blocks(const float* in, float* out) {
  __shared__ float warps[4];
  float x = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int delta = 16; delta > 0; delta /= 2) x += __shfl_down_sync(0xffffffffu, x, delta);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = warps[0] + warps[1] + warps[2] + warps[3];
}

// block_sum of common/launch.cuh, twice, so that its last barrier matters.
__global__ void sum_twice(const double* in, double* out) {
  for (int i = 0; i < 2; ++i) {
    const double sum = vimae::block_sum<128>(in[i * 128 + threadIdx.x]);
    if (threadIdx.x == 0) out[i] = sum;
  }
}

bool sums_twice() {
  std::vector<double> in(256), out(2, -1);
  for (int i = 0; i < 256; ++i) in[i] = i * i;
  launch(sum_twice, 1, 128, nullptr, in.data(), out.data());
  return out[0] == 690880 && out[1] == 4868800;
}

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x % 32;
  int* mine = out + threadIdx.x * 6;
  mine[0] = __shfl_xor_sync(0xffffffffu, lane, 5);
  mine[1] = __shfl_sync(0xffffffffu, lane, 9, 8);        // lane 1 of each eight
  mine[2] = __shfl_down_sync(0xffffffffu, lane, 3, 16);  // stays in its sixteen
  mine[3] = __shfl_up_sync(0xffffffffu, lane, 1);
  mine[4] = lane < 4 ? __shfl_sync(0xfu, lane * 10, 3) : 0;
  mine[5] = int(__shfl_xor_sync(0xffffffffu, double(lane) + 0.5, 1) * 2);
}

void check_shuffles() {
  std::vector<int> out(64 * 6);
  launch(shuffles, 1, 64, nullptr, out.data());
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32;
    const int want[] = {lane ^ 5,
                        lane / 8 * 8 + 1,
                        lane % 16 + 3 < 16 ? lane + 3 : lane,
                        lane ? lane - 1 : 0,
                        lane < 4 ? 30 : 0,
                        (lane ^ 1) * 2 + 1};
    for (int i = 0; i < 6; ++i)
      expect(out[t * 6 + i] == want[i],
             "shuffle " + std::to_string(i) + " of thread " + std::to_string(t));
  }
}

__global__ void count(unsigned long long* total, int* order) {
  order[atomicAdd(total, 1ull)] = blockIdx.x * blockDim.x + threadIdx.x;
}

// What is in shared memory before anything is written to it.
template <class T>
__global__ void read_shared(T* out) {
  __shared__ T buffer[33];
  out[threadIdx.x] = buffer[threadIdx.x];
  __syncthreads();
  buffer[threadIdx.x] = T(1);
}

// Faults.

__global__ void barrier_in_branch(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void two_barriers(int* out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void early_lane(int* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, threadIdx.x, 1);
}
__global__ void lane_at_barrier(int* out) {
  if (threadIdx.x == 7) __syncthreads();
  __syncwarp();
  out[threadIdx.x] = 1;
}
__global__ void lane_not_in_mask(int* out) {
  out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, 0);
}
__global__ void source_not_in_mask(int* out) {
  if (threadIdx.x < 4) out[threadIdx.x] = __shfl_sync(0xfu, threadIdx.x, 5);
}

template <class Run>
void expect_error(const std::string& message, Run run) {
  try {
    run();
    expect(false, "no error: " + message);
  } catch (const cuda_shim::Error& error) {
    expect(std::string(error.what()).find(message) != std::string::npos,
           message + ": " + error.what());
  }
}

void check_errors() {
  std::vector<int> out(1024);
  const auto one = [&](void (*kernel)(int*), int threads) {
    return [&out, kernel, threads] { launch(kernel, 2, threads, nullptr, out.data()); };
  };
  expect_error("divergent barrier", one(barrier_in_branch, 64));
  expect_error("divergent barrier", one(two_barriers, 64));
  expect_error("missing lane", one(early_lane, 32));
  expect_error("missing lane", one(lane_at_barrier, 32));
  expect_error("missing lane", one(lane_not_in_mask, 32));
  expect_error("missing lane", one(source_not_in_mask, 32));
  expect_error("not a multiple", one(two_barriers, 33));
  expect_error("not a multiple", one(two_barriers, 2048));
  expect_error("grid of 0", [&] { launch(two_barriers, dim3(0), 32, nullptr, out.data()); });
  launch(two_barriers, 1, 32, nullptr, out.data());  // the fibres left behind start again
}

void check_all() {
  expect(transposes<float, true>() && transposes<double, true>(), "transpose");
  expect(sums_twice(), "block_sum");
  check_shuffles();

  std::vector<float> in(5 * 128), sums(5);
  for (int i = 0; i < 5 * 128; ++i) in[i] = float(i);
  launch(sum_blocks, 5, 128, nullptr, in.data(), sums.data());
  for (int b = 0; b < 5; ++b) expect(sums[b] == float(128 * 128 * b + 128 * 127 / 2), "sum_blocks");

  std::vector<int> order(2 * 64, -1);
  unsigned long long total = 0;
  launch(count, 2, 64, nullptr, &total, order.data());
  expect(total == 128, "atomicAdd");

  check_errors();
#ifdef VIMAE_SHIM_FILLS_SHARED
  for (int launches = 0; launches < 2; ++launches) {
    std::vector<float> floats(32);
    std::vector<int> ints(32);
    launch(read_shared<float>, 3, 32, nullptr, floats.data());
    launch(read_shared<int>, 3, 32, nullptr, ints.data());
    for (int i = 0; i < 32; ++i)
      expect(std::isnan(floats[i]) && ints[i] == -1, "shared memory is filled");
  }
#endif
}

std::vector<int> order_of_threads() {
  std::vector<int> order(64, -1);
  unsigned long long total = 0;
  launch(count, 1, 64, nullptr, &total, order.data());
  return order;
}

// A missing barrier shows in one of the orders.
template <class Works>
bool fails_in_some_order(Works works) {
  bool all = true;
  for (auto order :
       {cuda_shim::Order::forward, cuda_shim::Order::reverse, cuda_shim::Order::shuffled}) {
    cuda_shim::set_order(order, 1);
    all = works() && all;
  }
  return !all;
}

template <int N>
__global__ void past_the_end(int* out, int past) {
  __shared__ int shared[N];
  int* p = shared;
  p[threadIdx.x + past] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}
__global__ void store(int* out, int past) { out[threadIdx.x + past] = 1; }
__global__ void overflow(int* out, int past) {
  int local[4] = {1, 2, 3, 4};
  int* volatile p = local;
  p[threadIdx.x + past] = 5;
  out[threadIdx.x] = p[0];
}

int run_case(const std::string& name) {
  const std::unique_ptr<int[]> out(new int[32]);
  const auto fault = [&](void (*kernel)(int*, int), int past) {
    launch(kernel, 1, 32, nullptr, out.get(), past);
  };
  if (name == "global") fault(store, 1);
  if (name == "shared") fault(past_the_end<32>, 1);
  if (name == "stack") fault(overflow, 4);
  std::printf("nothing was found\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return run_case(argv[1]);
  cuda_shim::set_order(cuda_shim::Order::forward);
  check_all();
  const std::vector<int> forward = order_of_threads();
  cuda_shim::set_order(cuda_shim::Order::reverse);
  check_all();
  const std::vector<int> reverse = order_of_threads();
  for (unsigned seed = 0; seed < 5; ++seed) {
    cuda_shim::set_order(cuda_shim::Order::shuffled, seed);
    check_all();
  }
  cuda_shim::set_order(cuda_shim::Order::shuffled, 1);
  const std::vector<int> shuffled = order_of_threads();
  cuda_shim::set_order(cuda_shim::Order::shuffled, 1);
  expect(shuffled == order_of_threads(), "a seed repeats an order");
  expect(shuffled != forward && shuffled != reverse, "a shuffled order");
  expect(forward[0] == 0 && forward[63] == 63 && reverse[0] == 63 && reverse[63] == 0,
         "forward and reverse");

  expect(fails_in_some_order(transposes<float, false>), "a missing barrier is found");
  int planted = 0;
  for (const cuda_shim::Place& place : cuda_shim::barriers()) {
    if (place.file != "launch.cuh") continue;
    cuda_shim::set_fault(place);
    expect(fails_in_some_order(sums_twice),
           "without the barrier " + place.file + ":" + std::to_string(place.line));
    ++planted;
  }
  cuda_shim::set_fault({"", 0});
  expect(planted == 2, "the barriers of block_sum");
  std::printf("%d failures\n", failures);
  return failures != 0;
}

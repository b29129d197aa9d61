#include "testing/cuda_shim.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#if defined(__SANITIZE_ADDRESS__)
#define VIMAE_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define VIMAE_ASAN
#endif
#endif
#ifdef VIMAE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef VIMAE_SHIM_FILLS_SHARED
extern "C" char cuda_shim_shared_begin[], cuda_shim_shared_end[];
#endif

namespace cuda_shim {
namespace {

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr std::size_t kStack = 256 << 10, kGuard = 64 << 10;

// A stack that runs, and what ASan must know to follow a switch to it.
struct Context {
  void* registers[5];  // of __builtin_setjmp: unlike swapcontext it makes no system call, and
                       // leaves ASan alone
  const void* stack = nullptr;
  std::size_t stack_size = 0;
};

enum class State { ready, at_barrier, in_warp, done };

struct Thread {
  Context context;
  State state = State::done;
  bool begun = false;
  // What it waits for, and where.
  const char* file = "";
  int line = 0;
  unsigned mask = 0;
  int source = 0;
  std::uint64_t bits = 0;
  int gathered = 0;  // calls of gather()
};

// A barrier that was met. The strings are literals: comparing their addresses is enough.
struct Site {
  const char* file;
  int line;
  bool faulty;
};

struct Block {
  std::vector<Thread> threads;
  Context scheduler;
  int count = 0;    // threads of the blocks that run now
  int current = 0;  // the one that runs
  const std::function<void()>* body = nullptr;
  std::string error;

  Order order = Order::forward;
  std::mt19937 random;
  Place fault{"", 0};
  std::vector<Site> sites;
};
Block block;

// Two functions, for GCC must not see both builtins in one.
__attribute__((noinline, noreturn, no_sanitize("address", "undefined"))) void jump(void** to) {
  __builtin_longjmp(to, 1);
}
__attribute__((noinline, no_sanitize("address", "undefined"))) void save_and_jump(
    void** from, void** to, ucontext_t* start) {
  if (__builtin_setjmp(from) == 0) start ? void(setcontext(start)) : jump(to);
}

// `from` stays where it is until something switches back to it. `start` is where `to` begins, if it
// has not yet.
void switch_to(Context& from, Context& to, ucontext_t* start = nullptr) {
#ifdef VIMAE_ASAN
  void* fake_stack;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_size);
#endif
  save_and_jump(from.registers, to.registers, start);
#ifdef VIMAE_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void yield() { switch_to(block.threads[block.current].context, block.scheduler); }

// A fibre runs one thread after another and never returns.
void fibre() {
#ifdef VIMAE_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler.stack, &block.scheduler.stack_size);
#endif
  for (;;) {
    (*block.body)();
    block.threads[block.current].state = State::done;
    yield();
  }
}

void begin(Thread& thread, ucontext_t& start) {
  Context& c = thread.context;
  if (!c.stack) {
    // Below it pages that must not be touched: a stack overflow ends the test.
    void* memory = mmap(nullptr, kGuard + kStack, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    c.stack = static_cast<char*>(memory) + kGuard;
    c.stack_size = kStack;
    mprotect(static_cast<char*>(memory) + kGuard, kStack, PROT_READ | PROT_WRITE);
  }
#ifdef VIMAE_ASAN
  __asan_unpoison_memory_region(c.stack, c.stack_size);
#endif
  getcontext(&start);
  start.uc_stack.ss_sp = const_cast<void*>(c.stack);
  start.uc_stack.ss_size = c.stack_size;
  start.uc_link = nullptr;
  makecontext(&start, fibre, 0);
  thread.begun = true;
}

std::string name(int thread) {
  return "thread " + std::to_string(thread) + " of block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
}

const char* base(const char* file) {
  const char* slash = std::strrchr(file, '/');
  return slash ? slash + 1 : file;
}

Site& site(const char* file, int line) {
  for (Site& s : block.sites)
    if (s.line == line && s.file == file) return s;
  block.sites.push_back({file, line, fault(file, line)});
  return block.sites.back();
}

std::string place(const char* file, int line) { return base(file) + (":" + std::to_string(line)); }

std::string describe(int t) {
  const Thread& thread = block.threads[t];
  if (thread.state == State::done) return name(t) + " has returned";
  return name(t) +
         (thread.state == State::at_barrier ? " waits at the barrier "
                                            : " waits for its warp at ") +
         place(thread.file, thread.line);
}

void resume(int t) {
  Thread& thread = block.threads[t];
  block.current = t;
  threadIdx = {unsigned(t), 0, 0};
  if (thread.begun) {
    switch_to(block.scheduler, thread.context);
  } else {
    ucontext_t start;
    begin(thread, start);
    switch_to(block.scheduler, thread.context, &start);
  }
  if (!block.error.empty()) throw Error(block.error);
}

// Lanes that wait for each other and are all there exchange their bits and go on.
void release_warp(int t) {
  const Thread& last = block.threads[t];
  const unsigned mask = last.mask;
  const int first = t / kWarp * kWarp;
  std::uint64_t received[kWarp];
  for (int i = 0; i < kWarp; ++i) {
    const Thread& thread = block.threads[first + i];
    if (!(mask >> i & 1)) continue;
    if (thread.state != State::in_warp || thread.mask != mask || thread.line != last.line) return;
    received[i] = block.threads[first + thread.source].bits;
  }
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1) {
      block.threads[first + i].bits = received[i];
      block.threads[first + i].state = State::ready;
    }
}

// Runs a warp until all its lanes have returned or wait for another warp.
void run_warp(int first, const std::vector<int>& lanes) {
  for (bool ran = true; ran;) {
    ran = false;
    for (int lane : lanes) {
      if (block.threads[first + lane].state != State::ready) continue;
      resume(first + lane);
      ran = true;
      if (block.threads[first + lane].state == State::in_warp) release_warp(first + lane);
    }
  }
}

void arrange(std::vector<int>& order) {
  std::iota(order.begin(), order.end(), 0);
  if (block.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (block.order == Order::shuffled) std::shuffle(order.begin(), order.end(), block.random);
}

// All threads have returned or wait. True if there is more to run.
bool release_block() {
  const Thread& first = block.threads[0];
  for (int t = 0; t < block.count; ++t) {
    const Thread& thread = block.threads[t];
    if (thread.state == State::in_warp) {
      const int lane0 = t / kWarp * kWarp;
      for (int i = 0; i < kWarp; ++i) {
        const Thread& other = block.threads[lane0 + i];
        if ((thread.mask >> i & 1) && (other.state != State::in_warp || other.mask != thread.mask ||
                                       other.line != thread.line))
          throw Error("missing lane: " + describe(t) + ", " + describe(lane0 + i));
      }
    }
  }
  for (int t = 1; t < block.count; ++t) {
    const Thread& thread = block.threads[t];
    if (thread.state != first.state || (thread.state == State::at_barrier &&
                                        (thread.line != first.line || thread.file != first.file)))
      throw Error("divergent barrier: " + describe(0) + ", " + describe(t));
  }
  if (first.state == State::done) return false;
  for (int t = 0; t < block.count; ++t) block.threads[t].state = State::ready;
  return true;
}

// Not memset: between the variables is what ASan guards.
#ifdef VIMAE_SHIM_FILLS_SHARED
__attribute__((no_sanitize("address", "undefined"))) void fill_shared() {
  auto* end = reinterpret_cast<volatile std::uint64_t*>(cuda_shim_shared_end);
  for (auto* at = reinterpret_cast<volatile std::uint64_t*>(cuda_shim_shared_begin); at < end; ++at)
    *at = ~std::uint64_t(0);
}
#else
void fill_shared() {}
#endif

void run_block() {
  fill_shared();
  for (int t = 0; t < block.count; ++t) {
    block.threads[t].state = State::ready;
    block.threads[t].gathered = 0;
  }
  std::vector<int> warps(block.count / kWarp), lanes(kWarp);
  do {
    arrange(warps);
    for (int warp : warps) {
      arrange(lanes);
      run_warp(warp * kWarp, lanes);
    }
  } while (release_block());
}

}  // namespace

void set_order(Order order, unsigned seed) {
  block.order = order;
  block.random.seed(seed);
}

void set_fault(const Place& place) {
  block.fault = place;
  block.sites.clear();
}

bool set_fault(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::size_t colon = argument.rfind(':');
    if (argument.rfind("--fault=", 0) != 0 || colon == std::string::npos) continue;
    set_fault({argument.substr(8, colon - 8), std::stoi(argument.substr(colon + 1))});
    return true;
  }
  return false;
}

bool fault(const char* file, int line) {
  return line == block.fault.line && block.fault.file == base(file);
}

std::vector<Place> barriers() {
  std::vector<Place> places;
  for (const Site& s : block.sites) places.push_back({base(s.file), s.line});
  return places;
}

void run(dim3 grid, int threads, const std::function<void()>& thread) {
  if (threads < kWarp || threads > kMaxThreads || threads % kWarp)
    throw Error("a block of " + std::to_string(threads) +
                " threads: not a multiple of 32 up to 1024");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw Error("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                std::to_string(grid.z) + " blocks");
  if (block.body) throw Error("a kernel was launched by a kernel");
  block.threads.resize(kMaxThreads);
  block.count = threads;
  block.body = &thread;
  gridDim = grid;
  blockDim = dim3(unsigned(threads));
  struct End {
    ~End() {
      block.body = nullptr;
      block.error.clear();
      // Stacks on which a thread was left in the middle start afresh.
      for (Thread& t : block.threads)
        if (t.state != State::done) t.begun = false, t.state = State::done;
    }
  } end;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
}

void barrier(const char* file, int line) {
  if (site(file, line).faulty) return;
  Thread& thread = block.threads[block.current];
  thread.state = State::at_barrier;
  thread.file = file;
  thread.line = line;
  yield();
}

std::uint64_t shuffle(unsigned mask, std::uint64_t bits, int source, const char* file, int line) {
  if (!(mask >> lane() & 1) || !(mask >> source & 1)) {
    block.error = "missing lane: " + name(block.current) + " at " + place(file, line) +
                  " reads lane " + std::to_string(source) + " of mask " + std::to_string(mask);
    yield();  // for good
  }
  Thread& thread = block.threads[block.current];
  thread.state = State::in_warp;
  thread.file = file;
  thread.line = line;
  thread.mask = mask;
  thread.source = source;
  thread.bits = bits;
  yield();
  return thread.bits;
}

const double (*gather(const double* values, int count, const char* file, int line)) [kGathered] {
  // Two, in turn: a lane is one call ahead of another at most.
  static double given[2][kMaxThreads][kGathered];
  auto& now = given[block.threads[block.current].gathered++ % 2];
  std::copy_n(values, count, now[block.current]);
  shuffle(0xffffffffu, 0, lane(), file, line);
  return now + block.current / kWarp * kWarp;
}

int lane() {
  return block.current % kWarp;
}

}  // namespace cuda_shim

#include "common/dispatch.h"

#include <atomic>
#include <stdexcept>

namespace vimae {
namespace {

struct Named {
  Level level;
  const char* name;
};

const Named kLevels[] = {
#define VIMAE_NAME(LEVEL, _) {Level::LEVEL, #LEVEL},
    VIMAE_EACH_LEVEL(VIMAE_NAME, )
#undef VIMAE_NAME
};

bool runs(Level level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (level == Level::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level == Level::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return level == Level::baseline;
}

Level best() {
  Level found = Level::baseline;
  for (const Named& l : kLevels)
    if (runs(l.level)) found = l.level;
  return found;
}

std::atomic<Level>& current() {
  static std::atomic<Level> chosen{best()};
  return chosen;
}

}  // namespace

Level level() { return current().load(std::memory_order_relaxed); }

void set_level(const std::string& name) {
  std::string known;
  for (const Named& l : kLevels) {
    if (!runs(l.level)) continue;
    if (name == l.name) {
      current() = l.level;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + l.name;
  }
  throw std::invalid_argument("SIMD level is '" + name + "'; this processor can run " + known);
}

std::string level_name() {
  for (const Named& l : kLevels)
    if (l.level == level()) return l.name;
  return {};
}

std::vector<std::string> runnable_levels() {
  std::vector<std::string> names;
  for (const Named& l : kLevels)
    if (runs(l.level)) names.push_back(l.name);
  return names;
}

}  // namespace vimae

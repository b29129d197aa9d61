#include "common/interrupt.h"

#include <atomic>

namespace vimae {
namespace {

std::atomic<bool (*)()> ask{nullptr};

}  // namespace

void set_interruption(bool (*asked)()) { ask = asked; }

bool interrupted() {
  bool (*const asked)() = ask.load(std::memory_order_relaxed);
  return asked && asked();
}

void give_up() { throw Interrupted{}; }

}  // namespace vimae

// How a long call on the CPU is given up: it asks now and then whether it should.
#pragma once

namespace vimae {

// Thrown by a call that was given up; what it would have written is undefined.
struct Interrupted {};

// What every call asks from now on, on its calling thread and without any lock; null: nothing.
void set_interruption(bool (*asked)());
// The answer.
bool interrupted();
// Throws Interrupted, here and not in code of a newer instruction set.
[[noreturn]] void give_up();

}  // namespace vimae

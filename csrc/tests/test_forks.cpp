// What another thread was making when a process forked: the child makes it anew, and does not wait.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "check.hpp"
#include "csrkern/costs.hpp"
#include "csrkern/made_once.hpp"

using namespace csrkern;

namespace {

struct Made {
  explicit Made(int64_t n) : n(n) {}
  int64_t bytes() const { return 8; }
  int64_t n;
};

// Runs `work` in a forked child, which has five minutes: the machine may be busy.
[[maybe_unused]] void in_a_child(const std::function<void()>& work) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(300);
    work();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

[[maybe_unused]] void test_a_part_that_is_being_made() {
  const MadeOnce<Made> part;
  std::atomic<bool> making{false}, forked{false};
  std::thread maker([&] {
    part.get_or_make([&] {
      making = true;
      while (!forked) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return Made(1);
    });
  });
  while (!making) std::this_thread::yield();
  in_a_child([&] {
    CHECK(part.get() == nullptr);
    CHECK(part.get_or_make([] { return Made(2); }).n == 2);
    in_a_child([&] { CHECK(part.get_or_make([] { return Made(3); }).n == 2); });
  });
  forked = true;
  maker.join();
  CHECK(part.get_or_make([] { return Made(4); }).n == 1);
}

[[maybe_unused]] void test_costs_that_are_being_measured() {
  std::thread measurer([] { costs(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // of about 300
  in_a_child([] { CHECK(costs().posting > 0); });
  measurer.join();
  CHECK(costs_were_measured());
}

}  // namespace

int main() {
#ifndef CSRKERN_EMULATED  // QEMU cannot follow a fork of a process with threads
  CHECK(n_forks() == 0);
  in_a_child([] {
    CHECK(n_forks() == 1);
    in_a_child([] { CHECK(n_forks() == 2); });
  });
  test_a_part_that_is_being_made();
  test_costs_that_are_being_measured();
#endif
}

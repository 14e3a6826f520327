#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

// Every number comes exactly once, in chunks of at most `grain`; no thread number is held twice at
// once.
void check_cover(int64_t n, int64_t grain, int num_threads) {
  const int threads = std::max(num_threads, 1);
  std::vector<int> visits(std::max<int64_t>(n, 0));  // plain: chunks must not overlap
  std::vector<int> scratch(threads);
  std::vector<std::atomic<int>> held(threads);
  parallel_for(n, grain, num_threads, [&](int64_t begin, int64_t end, int thread) {
    CHECK(0 <= begin && begin < end && end <= n && end - begin <= std::max<int64_t>(grain, 1));
    CHECK(0 <= thread && thread < threads);
    CHECK(held[thread].exchange(1) == 0);
    ++scratch[thread];
    for (int64_t i = begin; i < end; ++i) ++visits[i];
    held[thread].store(0);
  });
  for (int count : visits) CHECK(count == 1);
}

void check_nested(int num_threads) {
  std::atomic<int64_t> total{0};
  parallel_for(8, 1, num_threads, [&](int64_t outer, int64_t, int) {
    parallel_for(50, 7, num_threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) total += outer * 50 + i;
    });
  });
  CHECK(total == 400 * 399 / 2);
}

void check_exceptions(int num_threads) {
  for (int64_t bad : {0, 13, 99, -1}) {  // -1: all of them
    std::atomic<int> inside{0};
    bool caught = false;
    try {
      parallel_for(100, 3, num_threads, [&](int64_t begin, int64_t end, int) {
        ++inside;
        const bool here = bad < 0 || (begin <= bad && bad < end);
        // Time for others to fail as well.
        if (bad < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        --inside;
        if (here) throw std::out_of_range("piece");
      });
    } catch (const std::out_of_range&) {
      caught = true;
      CHECK(inside == 0);  // no chunk is still running
    }
    CHECK(caught);
    check_cover(100, 3, num_threads);  // the pool lives on
  }
}

// Neither a thread sanitizer nor QEMU can follow a fork of a process with threads.
#if defined(__SANITIZE_THREAD__) || defined(CSRKERN_EMULATED)
[[maybe_unused]] void check_fork() {}
#else
void check_fork() {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    check_cover(1000, 10, 4);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

#if defined(__x86_64__)
void flush_denormals(bool flush) {
  const unsigned bits = 0x8040, word = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(flush ? word | bits : word & ~bits);
}
#elif defined(__aarch64__)
void flush_denormals(bool flush) {
  const uint64_t word = flush ? 1 << 24 : 0;
  asm volatile("msr fpcr, %0" : : "r"(word));
}
#endif

// Chunks keep denormal numbers, whatever their caller does, and leave that as it was.
void check_denormals([[maybe_unused]] int num_threads) {
#if defined(__x86_64__) || defined(__aarch64__)
  const auto kept = [] {
    volatile float least = 0x1p-140f;
    return least * 0.5f != 0;
  };
  CHECK(kept());
  flush_denormals(true);
  parallel_for(100, 1, num_threads, [&](int64_t, int64_t, int) { CHECK(kept()); });
  CHECK(!kept());
  flush_denormals(false);
#endif
}

void check_all() {
  for (int threads : {-1, 0, 1, 2, 3, 7}) {
    for (int64_t n : {-5, 0, 1, 2, 63, 1000}) {
      for (int64_t grain : {0, 1, 10, 5000}) check_cover(n, grain, threads);
    }
    check_nested(threads);
    check_exceptions(threads);
    check_denormals(threads);
  }
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([c] {
      for (int round = 0; round < 20; ++round) {
        check_cover(500, 3, 2 + c);
        check_nested(3);
        check_exceptions(2 + c);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  check_all();
  CHECK(available_threads() >= 1);
#ifndef __SANITIZE_THREAD__
  check_fork();
  // The same on the threads of an OpenMP runtime, which PyTorch brings along; a thread sanitizer
  // does not see how they wait for each other.
  if (dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL) != nullptr) {
    check_all();
    check_fork();
  }
#endif
}

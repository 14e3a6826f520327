#include "csrkern/parallel.hpp"

#include "csrkern/fork_mutex.hpp"

#ifndef _WIN32
#include <dlfcn.h>
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace csrkern {
namespace {

using Body = std::function<void(int64_t, int64_t, int)>;

struct Job {
  Job(const Body* body, int64_t n, int64_t grain, int seats)
      : body(body), n(n), grain(grain), seats_left(seats) {}

  const Body* body;
  int64_t n;
  int64_t grain;
  std::atomic<int64_t> next{0};
  // A mutex guards the rest. All but the error belongs to the pool.
  int seats_left;            // how many more workers may join
  int next_thread = 1;       // thread 0 is the caller
  int running = 0;           // workers inside
  std::exception_ptr error;  // the first one
};

// Keeps denormal numbers while kernels run, whatever mode the calling thread has set: the threads
// that share the work would differ otherwise.
class Denormals {
 public:
  Denormals() : saved_(control()) { set_control(saved_ & ~kFlush); }
  ~Denormals() { set_control(saved_); }

 private:
#if defined(__x86_64__)
  using Control = unsigned;
  static constexpr Control kFlush = 0x8000 | 0x40;  // flush to zero, denormals are zero
  static Control control() { return __builtin_ia32_stmxcsr(); }
  static void set_control(Control word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kFlush = 1 << 24;
  static Control control() {
    Control word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set_control(Control word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Control = int;
  static constexpr Control kFlush = 0;
  static Control control() { return 0; }
  static void set_control(Control) {}
#endif

  Control saved_;
};

// Runs chunks until none is left. The mutex guards the error.
void drain(Job& job, int thread, std::mutex& mutex) {
  const Denormals count;
  try {
    for (;;) {
      const int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= job.n) return;
      (*job.body)(begin, std::min(begin + job.grain, job.n), thread);
    }
  } catch (...) {
    job.next.store(job.n, std::memory_order_relaxed);
    std::lock_guard lock(mutex);
    if (!job.error) job.error = std::current_exception();
  }
}

class Pool {
 public:
  void run(Job& job, int num_threads) {
    {
      std::lock_guard lock(mutex_);
      // Nested and concurrent calls share the workers, so the pool never grows beyond the need of
      // the largest call.
      while (static_cast<int>(workers_.size()) < num_threads - 1) {
        workers_.emplace_back([this] { work(); });
      }
      jobs_.push_back(&job);
    }
    for (int i = 0; i < num_threads - 1; ++i) wake_.notify_one();
    drain(job, 0, mutex_);
    std::unique_lock lock(mutex_);
    const auto it = std::find(jobs_.begin(), jobs_.end(), &job);
    if (it != jobs_.end()) jobs_.erase(it);
    done_.wait(lock, [&] { return job.running == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  [[noreturn]] void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      const int thread = job.next_thread++;
      ++job.running;
      if (--job.seats_left == 0) jobs_.pop_front();
      lock.unlock();
      drain(job, thread, mutex_);
      lock.lock();
      if (--job.running == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  std::vector<std::thread> workers_;
};

// Leaked on purpose: workers outlive static destruction, and a forked child, which has none of its
// parent's threads, gets a new pool instead of locks in an unknown state.
Pool* g_pool = new Pool;
int64_t g_forks = 0;
#ifndef _WIN32
const int g_watched = pthread_atfork(nullptr, nullptr, [] {
  g_pool = new Pool;
  ++g_forks;
});
#endif

// Returns the OpenMP runtime that is already loaded, PyTorch's, or null. Its threads spin for a
// while after each operator of PyTorch, and a pool of our own would compete with them for
// processors: a gather of 2.5 ms on one thread took 4.2 ms on two. It hangs in a forked child.
using GompParallel = void (*)(void (*)(void*), void*, unsigned num_threads, unsigned flags);
GompParallel openmp() {
#ifdef _WIN32
  return nullptr;  // PyTorch's runtime there has another interface
#else
  static std::atomic<GompParallel> found{nullptr};
  if (n_forks() > 0) return nullptr;
  GompParallel known = found.load(std::memory_order_relaxed);
  if (!known) {
    known = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    found.store(known, std::memory_order_relaxed);
  }
  return known;
#endif
}

void run_with_openmp(GompParallel parallel, Job& job, int num_threads) {
  struct Team {
    explicit Team(Job* job) : job(job) {}
    Job* job;
    std::atomic<int> next_thread{0};
    std::mutex mutex;
  } team(&job);
  parallel(
      [](void* data) {
        Team& team = *static_cast<Team*>(data);
        drain(*team.job, team.next_thread.fetch_add(1), team.mutex);
      },
      &team, static_cast<unsigned>(num_threads), 0);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace

int64_t n_forks() { return g_forks; }

void parallel_for(int64_t n, int64_t grain, int num_threads, const Body& body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t pieces = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(std::max(num_threads, 1), pieces));
  if (threads == 1) {
    const Denormals count;
    for (int64_t begin = 0; begin < n; begin += grain) {
      body(begin, std::min(begin + grain, n), 0);
    }
    return;
  }
  Job job(&body, n, grain, threads - 1);
  if (const GompParallel parallel = openmp()) {
    run_with_openmp(parallel, job, threads);
  } else {
    g_pool->run(job, threads);
  }
}

int available_threads() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace csrkern

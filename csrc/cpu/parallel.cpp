#include "csrkern/parallel.hpp"

#include <pthread.h>
#include <sched.h>

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
  // The rest is guarded by Pool::mutex_.
  int seats_left;            // how many more workers may join
  int next_thread = 1;       // thread 0 is the caller
  int running = 0;           // workers inside
  std::exception_ptr error;  // the first one
};

class Pool {
 public:
  void run(int64_t n, int64_t grain, int num_threads, const Body& body) {
    Job job(&body, n, grain, num_threads - 1);
    {
      std::lock_guard lock(mutex_);
      // Nested and concurrent calls share the workers, so the pool never grows past the
      // widest single call.
      while (static_cast<int>(workers_.size()) < num_threads - 1) {
        workers_.emplace_back([this] { work(); });
      }
      jobs_.push_back(&job);
    }
    for (int i = 0; i < num_threads - 1; ++i) wake_.notify_one();
    drain(job, 0);
    std::unique_lock lock(mutex_);
    const auto it = std::find(jobs_.begin(), jobs_.end(), &job);
    if (it != jobs_.end()) jobs_.erase(it);
    done_.wait(lock, [&] { return job.running == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void drain(Job& job, int thread) {
    try {
      for (;;) {
        const int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
        if (begin >= job.n) return;
        (*job.body)(begin, std::min(begin + job.grain, job.n), thread);
      }
    } catch (...) {
      job.next.store(job.n, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!job.error) job.error = std::current_exception();
    }
  }

  [[noreturn]] void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      const int thread = job.next_thread++;
      ++job.running;
      if (--job.seats_left == 0) jobs_.pop_front();
      lock.unlock();
      drain(job, thread);
      lock.lock();
      if (--job.running == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  std::vector<std::thread> workers_;
};

// Leaked on purpose: workers outlive static destruction, and a forked child, which has none
// of its parent's threads, gets a fresh pool instead of locks in an unknown state.
Pool* g_pool = nullptr;
std::once_flag g_once;

Pool& pool() {
  std::call_once(g_once, [] {
    g_pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { g_pool = new Pool; });
  });
  return *g_pool;
}

}  // namespace

void parallel_for(int64_t n, int64_t grain, int num_threads, const Body& body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t pieces = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(std::max(num_threads, 1), pieces));
  if (threads == 1) {
    for (int64_t begin = 0; begin < n; begin += grain) {
      body(begin, std::min(begin + grain, n), 0);
    }
    return;
  }
  pool().run(n, grain, threads, body);
}

int available_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace csrkern

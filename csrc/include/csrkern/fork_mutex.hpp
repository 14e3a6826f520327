// A mutex for what is made once and kept: a forked child finds it free.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace csrkern {

// The number of forks between the first process that loaded this library and this one.
int64_t n_forks();

// In a child after fork() only the thread that forked goes on, and what another thread held would
// stay locked for good. Each process therefore has a mutex of its own, made when it first locks.
class ForkMutex {
 public:
  ForkMutex() = default;
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;
  ~ForkMutex() { delete own_.load(); }

  void lock() {
    Own* own = own_.load(std::memory_order_acquire);
    while (own == nullptr || own->forks != n_forks()) {
      Own* fresh = new Own{n_forks(), {}};
      // The parent's is left alone: a mutex that is held must not be destroyed.
      if (own_.compare_exchange_strong(own, fresh)) {
        own = fresh;
      } else {
        delete fresh;
      }
    }
    own->mutex.lock();
  }
  void unlock() { own_.load(std::memory_order_acquire)->mutex.unlock(); }

 private:
  struct Own {
    int64_t forks;
    std::mutex mutex;
  };
  std::atomic<Own*> own_{nullptr};
};

}  // namespace csrkern

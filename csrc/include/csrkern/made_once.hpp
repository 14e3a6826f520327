// A part of something that is made when it is first needed, or once it would have paid.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "csrkern/fork_mutex.hpp"

namespace csrkern {

// Several threads may ask for it: one makes it, and the others wait. In a child that is forked
// meanwhile it has not been made.
template <class T>
class MadeOnce {
 public:
  MadeOnce() = default;
  MadeOnce(const MadeOnce&) = delete;
  MadeOnce& operator=(const MadeOnce&) = delete;
  ~MadeOnce() { delete made_.load(); }

  // Returns null if it has not been made.
  const T* get() const { return made_.load(std::memory_order_acquire); }

  // `make` returns a T.
  template <class Make>
  const T& get_or_make(const Make& make) const {
    if (const T* made = get()) return *made;
    const std::lock_guard<ForkMutex> lock(making_);
    if (made_.load() == nullptr) made_.store(new T(make()), std::memory_order_release);
    return *made_.load();
  }

  int64_t bytes() const {
    const T* made = get();
    return made == nullptr ? 0 : made->bytes();
  }

  // Notes time lost without it, and returns all of it so far.
  int64_t lose(int64_t ns) const { return ns_lost_.fetch_add(ns, std::memory_order_relaxed) + ns; }
  int64_t ns_lost() const { return ns_lost_.load(std::memory_order_relaxed); }

 private:
  mutable ForkMutex making_;
  mutable std::atomic<const T*> made_{nullptr};
  mutable std::atomic<int64_t> ns_lost_{0};
};

}  // namespace csrkern

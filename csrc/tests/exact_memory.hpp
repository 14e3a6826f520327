// Arrays that end where memory ends: one byte too far is a fault, even from instructions that
// a sanitizer does not see into, like masked vector loads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <utility>
#include <vector>

namespace csrkern {

// `bytes` bytes that end at an inaccessible page, except for padding that `alignment` requires.
void* allocate_exactly(size_t bytes, size_t alignment);
void free_exactly(void* memory, size_t bytes);

template <class T>
class Exact {
 public:
  explicit Exact(size_t size = 0, T value = T())
      : data_(static_cast<T*>(allocate_exactly(size * sizeof(T), alignof(T)))), size_(size) {
    std::fill_n(data_, size, value);
  }
  Exact(std::initializer_list<T> values) : Exact(values.size()) {
    std::copy(values.begin(), values.end(), data_);
  }
  explicit Exact(const std::vector<T>& values) : Exact(values.size()) {
    std::copy(values.begin(), values.end(), data_);
  }
  Exact(const Exact& other) : Exact(other.size_) { std::copy_n(other.data_, size_, data_); }
  Exact& operator=(Exact other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Exact() { free_exactly(data_, size_ * sizeof(T)); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_;
  size_t size_;
};

}  // namespace csrkern

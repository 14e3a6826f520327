#include "index/dense_lists.hpp"

#include <cstring>

namespace csrkern {

DenseLists::DenseLists(const IndexView& view)
    : n_windows_(view.n_windows),
      window_bytes_(view.window * value_bytes(view.type)),
      rows_(view.n_terms, -1) {
  const uint64_t* offsets = view.offsets;
  int32_t n = 0;
  for (int64_t t = 0; t < view.n_terms; ++t) {
    if (takes(view, offsets[(t + 1) * n_windows_] - offsets[t * n_windows_])) rows_[t] = n++;
  }
  values_ = Buffer(n * n_windows_ * window_bytes_);  // zeros
  const int64_t size = value_bytes(view.type);
  for (int64_t t = 0; t < view.n_terms; ++t) {
    for (int64_t w = 0; rows_[t] >= 0 && w < n_windows_; ++w) {
      const uint64_t* offset = offsets + t * n_windows_ + w;
      const uint8_t* ids = view.slice(offset[0]);
      const auto n_here = static_cast<int64_t>(offset[1] - offset[0]);
      uint8_t* to = values_.data() + (rows_[t] * n_windows_ + w) * window_bytes_;
      for (int64_t i = 0; i < n_here; ++i) {
        uint16_t id;
        std::memcpy(&id, ids + 2 * i, 2);
        std::memcpy(to + id * size, ids + 2 * n_here + i * size, size);
      }
    }
  }
}

}  // namespace csrkern

#include "index/directory.hpp"

#include <cstring>

#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

// Calls body(block, term, run) for the postings of one window, term by term.
template <class Body>
void each_run(const IndexView& view, int64_t w, const Body& body) {
  const int64_t first_block = w * (view.window / view.block);
  for (int64_t t = 0; t < view.n_terms; ++t) {
    const uint64_t* offset = view.offsets + t * view.n_windows + w;
    const uint32_t n = static_cast<uint32_t>(offset[1] - offset[0]);
    const uint8_t* ids = view.slice(offset[0]);
    const auto block_of = [&](uint32_t i) {
      uint16_t id;
      std::memcpy(&id, ids + 2 * i, 2);
      return id / view.block;
    };
    for (uint32_t begin = 0; begin < n;) {
      const int32_t block = block_of(begin);
      uint32_t end = begin + 1;
      while (end < n && block_of(end) == block) ++end;
      body(first_block + block, t,
           Directory::Run{static_cast<uint16_t>(begin), static_cast<uint16_t>(end - begin - 1)});
      begin = end;
    }
  }
}

}  // namespace

Directory::Directory(const IndexView& view, int num_threads)
    : n_words_((view.n_terms + 31) / 32),
      words_(view.n_blocks() * n_words_ * sizeof(Word)),
      starts_(view.n_blocks() + 1) {
  const auto each_window = [&](const auto& body) {
    parallel_for(view.n_windows, 1, num_threads,
                 [&](int64_t w, int64_t, int) { each_run(view, w, body); });
  };
  each_window([&](int64_t block, int64_t term, Run) {
    word(block, term).bits |= uint32_t{1} << (term % 32);
  });
  for (int64_t b = 0; b < view.n_blocks(); ++b) {
    uint32_t before = 0;
    for (int64_t i = 0; i < n_words_; ++i) {
      Word& here = word(b, i * 32);
      here.before = before;
      before += ones(here.bits);
    }
    starts_[b + 1] = starts_[b] + before;
  }
  runs_.resize(starts_.back());
  each_window([&](int64_t block, int64_t term, Run run_here) {
    const_cast<Run&>(*find(block, term)) = run_here;
  });
}

}  // namespace csrkern

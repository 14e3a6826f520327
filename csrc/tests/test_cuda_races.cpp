// The CUDA kernels with several threads of the CPU in every simulated thread block: the results of
// one, and for a thread sanitizer no race that a barrier is missing for.
#include <thread>

#include "cuda_both.hpp"

namespace csrkern {
namespace {

// Rows that share a latent and have equal values, so that more candidates come than there is room
// for, beside rows at random.
OwnedCodes crowded(int64_t n, int64_t k, int64_t dim, uint64_t seed) {
  OwnedCodes codes = random_codes(n, k, dim, seed);
  for (int64_t i = 0; i < n; ++i) {
    if (i % 3 != 0) std::fill_n(codes.values.begin() + i * k, codes.indices[i * k] == 0, 0.5f);
  }
  return codes;
}

void test_workers() {
  const OwnedCodes codes = crowded(1300, 7, 40, 1), queries = random_codes(5, 7, 40, 2);
  for (const int32_t bits : {16, 8}) {
    for (const bool normalize : {false, true}) {
      const Form form{bits == 16 ? ValueType::float16 : ValueType::uint8, normalize, bits,
                      bits == 16 ? 320u : 2048u};
      cuda::simulated.workers = 1;
      const Both alone(codes, form);
      cuda::simulated.workers = 4;
      const Both both(codes, form);
      for (const int64_t top_k : {3, 700}) {
        Asked asked;
        asked.top_k = top_k;
        asked.normalize = normalize;
        cuda::simulated.workers = 1;
        const Answers expected = search_cpu(alone.cpu, queries, asked);
        cuda::simulated.workers = 4;
        for (const cuda::Way way : {cuda::Way::walk, cuda::Way::gather}) {
          CHECK(search_cuda(*both.gpu, queries, asked, way) == expected);
          CHECK(search_cuda(*both.built, queries, asked, way) == expected);
        }
      }
    }
  }
}

// From several threads of a process at once, for numbers of hits that need different memory.
void test_searches_at_once() {
  cuda::simulated.workers = 1;
  const OwnedCodes codes = crowded(900, 6, 40, 3), queries = random_codes(6, 6, 40, 4);
  const Both both(codes, {ValueType::float16, false, 16, 320});
  std::vector<std::thread> threads;
  for (const int64_t top_k : {1, 600, 10, 1024}) {
    threads.emplace_back([&both, &queries, top_k] {
      Asked asked;
      asked.top_k = top_k;
      const Answers expected = search_cpu(both.cpu, queries, asked);
      for (int i = 0; i < 3; ++i) {
        CHECK(search_cuda(*both.gpu, queries, asked, cuda::Way::cheaper) == expected);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::test_workers();
  csrkern::test_searches_at_once();
  std::puts("cuda races: ok");
}

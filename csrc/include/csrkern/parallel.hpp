// The threads that all kernels share: PyTorch's if it is loaded, else a pool of our own.
#pragma once

#include <cstdint>
#include <functional>

namespace csrkern {

// Calls body(begin, end, thread) over [0, n) in chunks of at most `grain`, on up to `num_threads`
// threads, of which the caller is one. `thread` < num_threads; no two chunks hold it at once, so it
// may select scratch memory. Chunks start in order and finish in any order: a result must not
// depend on which thread computed it. Several threads may call this at once, and a child after
// fork(). If body throws, the exception is rethrown here when all running chunks are done.
void parallel_for(int64_t n, int64_t grain, int num_threads,
                  const std::function<void(int64_t begin, int64_t end, int thread)>& body);

// The number of processors this process may run on.
int available_threads();

}  // namespace csrkern

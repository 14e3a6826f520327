// The threads that every kernel shares: those of PyTorch where it is loaded, else a pool of ours.
#pragma once

#include <cstdint>
#include <functional>

namespace csrkern {

// Calls body(begin, end, thread) over [0, n) cut into pieces of at most `grain`, on up to
// `num_threads` threads (the caller is one of them). `thread` < num_threads and is held by
// one piece at a time, so it may select scratch memory. Pieces are handed out in order but
// finish in any: a result must not depend on which thread computed it. May be called from
// several threads at once and, in a child, after fork(). An exception thrown by body is
// rethrown here once all pieces in flight are done.
void parallel_for(int64_t n, int64_t grain, int num_threads,
                  const std::function<void(int64_t begin, int64_t end, int thread)>& body);

// The number of processors this process may run on.
int available_threads();

}  // namespace csrkern

// Work on several threads: on the OpenMP pool that the process already has, if it has one.
//
// torch and its BLAS run on an OpenMP pool whose threads spin for a while after each parallel
// region. Threads of our own would share the cores with them, and take twice as long. The module
// does not link OpenMP, for then it might load a second one beside torch's: it looks the entry
// point up in the process.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace speechft::cpu {

// "openmp" or "threads": what run_on_threads() uses here.
const char* thread_pool();

// Calls function(data) on up to `threads` threads, one of them the caller's, and waits for all.
// It may be on fewer: inside a parallel region, on one.
void run_on_threads(void (*function)(void*), void* data, int threads);

// work(k, thread) for all k below count, each once, on up to `threads` threads. Which thread takes
// which k differs from run to run; no result may depend on it.
template <class Work>
void in_parallel(int64_t count, int threads, const Work& work) {
  struct State {
    const Work& work;
    const int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<int> thread{0};
  } state{work, count};
  const auto run = [](void* data) {
    State& state = *static_cast<State*>(data);
    const int thread = state.thread++;
    for (int64_t k; (k = state.next++) < state.count;) state.work(k, thread);
  };
  run_on_threads(run, &state, static_cast<int>(std::min<int64_t>(threads, count)));
}

}  // namespace speechft::cpu

#include "cpu/threads.h"

#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace speechft::cpu {
namespace {

// What GCC compiles `#pragma omp parallel` to. LLVM's and Intel's OpenMP export it as well.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

Parallel openmp() {
#if defined(__unix__) || defined(__APPLE__)
  static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#else
  return nullptr;
#endif
}

}  // namespace

const char* thread_pool() { return openmp() ? "openmp" : "threads"; }

void run_on_threads(void (*function)(void*), void* data, int threads) {
  if (threads <= 1) return function(data);
  if (const Parallel parallel = openmp())
    return parallel(function, data, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> helpers;
  for (int thread = 1; thread < threads; ++thread) helpers.emplace_back(function, data);
  function(data);
  for (auto& helper : helpers) helper.join();
}

}  // namespace speechft::cpu

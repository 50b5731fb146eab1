#include "cpu/soft_dtw.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/soft_dtw_group.h"
#include "cpu/threads.h"

namespace speechft::cpu {
namespace {

// The kernel compiled for a number of lanes and a set of instructions.
struct Kernel {
  int lanes;
  int64_t (*workspace)(int64_t rows, int64_t columns, bool want_alignment);
  void (*group)(const SoftDtwBatch&, const SoftDtwGroup&, float* workspace);
  void (*gradient)(const SoftDtwBatch&, int64_t pair);
};

#define SPEECHFT_KERNEL(lanes, set) \
  Kernel { lanes, soft_dtw_workspace_##set, soft_dtw_group_##set, soft_dtw_gradient_##set }

struct Kernels {
  Kernel wide, single;
};

#if defined(__GNUC__) && !defined(__clang__)
constexpr int BASELINE_LANES = 4;
#else
constexpr int BASELINE_LANES = 1;
#endif

const Kernels& current() {
#ifdef SPEECHFT_X86_VECTORS
  static const Kernels avx512{SPEECHFT_KERNEL(16, avx512), SPEECHFT_KERNEL(1, single_avx2)};
  static const Kernels avx2{SPEECHFT_KERNEL(8, avx2), SPEECHFT_KERNEL(1, single_avx2)};
  if (instruction_set() == InstructionSet::avx512) return avx512;
  if (instruction_set() == InstructionSet::avx2) return avx2;
#endif
  static const Kernels baseline{SPEECHFT_KERNEL(BASELINE_LANES, baseline),
                                SPEECHFT_KERNEL(1, single)};
  return baseline;
}

struct Task {
  const SoftDtwBatch* batch;
  const Kernel* kernel;
  SoftDtwGroup group;
  int64_t area;  // of its largest pair
};

constexpr int64_t ALIGNMENT = 64;

int64_t bytes_of(const Task& task) {
  const SoftDtwGroup& group = task.group;
  const int64_t rows = *std::max_element(group.x_lengths, group.x_lengths + group.count);
  const int64_t columns = *std::max_element(group.y_lengths, group.y_lengths + group.count);
  const int64_t floats = task.kernel->workspace(rows, columns, task.batch->want_alignment);
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

// Up to this many pairs of a group of `lanes` are faster one by one: a vector that is filled so
// sparsely takes its whole time, and its whole workspace.
int few(int lanes) { return lanes / 4; }

// Groups of pairs of one batch, in the order of their area, so that the lanes of a group end
// together.
void add_tasks(const SoftDtwBatch& batch, const Kernels& set, std::vector<Task>& tasks) {
  const auto area = [&](int64_t pair) { return batch.x_lengths[pair] * batch.y_lengths[pair]; };
  std::vector<int64_t> order(batch.pairs);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return area(a) > area(b); });
  for (int64_t start = 0; start < batch.pairs;) {
    const int64_t left = batch.pairs - start;
    const Kernel& kernel = left > few(set.wide.lanes) ? set.wide : set.single;
    SoftDtwGroup group{};
    group.count = static_cast<int>(std::min<int64_t>(kernel.lanes, left));
    for (int lane = 0; lane < kernel.lanes; ++lane) {
      const int64_t pair = order[start + (lane < group.count ? lane : 0)];
      group.pairs[lane] = pair;
      group.x_lengths[lane] = batch.x_lengths[pair];
      group.y_lengths[lane] = batch.y_lengths[pair];
    }
    tasks.push_back({&batch, &kernel, group, area(order[start])});
    start += group.count;
  }
}

// The largest first, so that no thread is left with one at the end.
std::vector<Task> tasks_of(const std::vector<SoftDtwBatch>& batches, int64_t& bytes) {
  std::vector<Task> tasks;
  for (const SoftDtwBatch& batch : batches) add_tasks(batch, current(), tasks);
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.area > b.area; });
  bytes = 0;
  for (const Task& task : tasks) bytes = std::max(bytes, bytes_of(task));
  return tasks;
}

}  // namespace

int soft_dtw_lanes() { return current().wide.lanes; }

int64_t soft_dtw_workspace_bytes(const std::vector<SoftDtwBatch>& batches, int threads) {
  int64_t bytes;
  const auto tasks = static_cast<int64_t>(tasks_of(batches, bytes).size());
  return bytes * std::max<int64_t>(1, std::min<int64_t>(threads, tasks)) + ALIGNMENT;
}

void soft_dtw(const std::vector<SoftDtwBatch>& batches, int threads, void* workspace) {
  int64_t bytes;  // a thread's
  const std::vector<Task> tasks = tasks_of(batches, bytes);
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  unsigned char* aligned =
      static_cast<unsigned char*>(workspace) + (ALIGNMENT - address % ALIGNMENT) % ALIGNMENT;
  in_parallel(static_cast<int64_t>(tasks.size()), threads, [&](int64_t k, int thread) {
    const Task& task = tasks[k];
    float* memory = reinterpret_cast<float*>(aligned + bytes * thread);
    task.kernel->group(*task.batch, task.group, memory);
  });
}

void soft_dtw_gradient(const std::vector<SoftDtwBatch>& batches, int threads) {
  const Kernels& set = current();
  in_parallel(batches.empty() ? 0 : batches[0].pairs, threads, [&](int64_t pair, int) {
    for (const SoftDtwBatch& batch : batches)
      if (!batch.dense[pair]) set.wide.gradient(batch, pair);
  });
}

}  // namespace speechft::cpu

// Runs CUDA kernels on the host, for tests: the kernel source is compiled unchanged by a C++
// compiler.
//
// Each thread of a block is a fiber. A fiber runs until it meets a shuffle, a barrier or a
// spin-wait; which fiber runs next is the schedule, which a test sets. So a kernel whose result or
// termination hangs on the order in which its warps happen to run is found out by a second
// schedule. Checked on the way: all lanes of a warp meet at the same kind of collective with the
// full mask; a block that can make no progress is reported, not waited for. Blocks run one after
// another.
//
// To be no kinder than the device: shared memory starts as NaNs; an asynchronous copy takes place
// when it is waited for, or, as the schedule has it, at once; the fast functions err by as much as
// the PTX manual allows; and at a barrier or a release another fiber may take over.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(...)

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// ---- the runtime

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
using cudaStream_t = void*;

namespace cuda_on_host {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;
constexpr int kDevices = 2;

enum class Order { kForward, kReverse, kRandom };

struct State {
  Order order = Order::kForward;
  uint64_t seed = 1;
  int device = 0;
};
inline State state;

enum class Meeting : int { kNone, kShuffle, kWarpBarrier, kBlockBarrier };

// A rendezvous of some fibers. Two sets of slots: a fiber can be at most one meeting ahead.
struct Rendezvous {
  unsigned size = 0, arrived = 0;
  uint64_t generation = 0;
  Meeting meeting = Meeting::kNone;
  uint64_t slots[2][kWarp] = {};
};

struct Copy {
  float* to;
  const float* from;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index thread;
  Rendezvous* waits_for = nullptr;
  uint64_t generation = 0;
  bool done = false, spins = false;
  std::vector<Copy> copies, open_copies;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Rendezvous> warps;
inline Rendezvous block;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline const std::function<void()>* kernel = nullptr;
inline Index block_index, block_size;
inline float* shared_memory = nullptr;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_host: %s (block %u)\n", message, block_index.x);
  std::abort();
}

inline void yield() {
  Fiber* self = current;
  swapcontext(&self->context, &scheduler);
}

inline unsigned lane() { return current->thread.x % kWarp; }

// Meets the others; returns the slots that they filled.
inline const uint64_t* meet(Rendezvous& place, Meeting meeting, uint64_t value) {
  if (place.arrived == 0) place.meeting = meeting;
  if (place.meeting != meeting) fail("threads of one group met at different collectives");
  uint64_t* slots = place.slots[place.generation % 2];
  if (meeting != Meeting::kBlockBarrier) slots[lane()] = value;
  if (++place.arrived == place.size) {
    place.arrived = 0;
    ++place.generation;
    if (meeting == Meeting::kShuffle) return slots;  // other meetings are points of takeover
  }
  current->waits_for = &place;
  current->generation = place.arrived == 0 ? place.generation - 1 : place.generation;
  yield();
  current->waits_for = nullptr;
  return slots;
}

inline const uint64_t* meet_warp(unsigned mask, Meeting meeting, uint64_t value) {
  if (mask != 0xffffffffu) fail("a collective with a partial mask");
  return meet(warps[current->thread.x / kWarp], meeting, value);
}

inline void enter() {
  (*kernel)();
  current->done = true;
  if (!current->copies.empty() || !current->open_copies.empty()) {
    fail("a thread ended before its asynchronous copies");
  }
  swapcontext(&current->context, &scheduler);
}

inline uint64_t next_random() {  // xorshift64
  state.seed ^= state.seed << 13;
  state.seed ^= state.seed >> 7;
  state.seed ^= state.seed << 17;
  return state.seed;
}

inline void run_block(unsigned threads) {
  if (threads % kWarp != 0) fail("a block of incomplete warps");
  warps.assign(threads / kWarp, Rendezvous{});
  for (Rendezvous& warp : warps) warp.size = kWarp;
  block = Rendezvous{};
  block.size = threads;
  while (fibers.size() < threads) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack = std::make_unique<char[]>(kStackBytes);
  }
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.thread.x = i;
    fiber.waits_for = nullptr;
    fiber.done = fiber.spins = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    order[i] = state.order == Order::kReverse ? threads - 1 - i : i;
  }
  int idle_rounds = 0;
  for (unsigned left = threads; left > 0;) {
    if (state.order == Order::kRandom) {
      for (unsigned i = threads - 1; i > 0; --i) {
        std::swap(order[i], order[next_random() % (i + 1)]);
      }
    }
    bool progress = false;
    for (const unsigned i : order) {
      Fiber& fiber = *fibers[i];
      if (fiber.done) continue;
      if (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation) continue;
      // A random schedule also leaves a runnable fiber alone for a while.
      if (state.order == Order::kRandom && next_random() % 4 == 0) continue;
      current = &fiber;
      fiber.spins = false;
      swapcontext(&scheduler, &fiber.context);
      if (fiber.done) --left;
      progress |= !fiber.spins;
    }
    idle_rounds = progress ? 0 : idle_rounds + 1;
    if (idle_rounds > 1000) fail("deadlock: every thread waits");
  }
  current = nullptr;
}

// With a relative error of `bound` to one side or the other, the same for the same bits. Powers of
// two are exact, as on the device.
inline float perturbed(float exact, float bound) {
  uint32_t bits;
  std::memcpy(&bits, &exact, sizeof bits);
  if ((bits & 0x7fffffu) == 0) return exact;
  const bool up = (bits * 2654435761u) >> 31 != 0;
  return static_cast<float>(static_cast<double>(exact) * (1.0 + (up ? bound : -bound)));
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? 0.f : x; }

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::current->thread)
#define blockIdx (cuda_on_host::block_index)
#define blockDim (cuda_on_host::block_size)

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = cuda_on_host::kDevices;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_host::state.device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= cuda_on_host::kDevices) return cudaErrorInvalidDevice;
  cuda_on_host::state.device = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 9;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid value";
}

// ---- the device

template <typename T>
T shuffled(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const uint64_t* slots = cuda_on_host::meet_warp(mask, cuda_on_host::Meeting::kShuffle, bits);
  return source < 0 || source >= 32 ? value : shuffled<T>(slots[source]);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  return __shfl_sync(mask, value, static_cast<int>(cuda_on_host::lane() - distance));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  return __shfl_sync(mask, value, static_cast<int>(cuda_on_host::lane() + distance));
}
inline void __syncwarp(unsigned mask) {
  cuda_on_host::meet_warp(mask, cuda_on_host::Meeting::kWarpBarrier, 0);
}
inline void __syncthreads() {
  cuda_on_host::meet(cuda_on_host::block, cuda_on_host::Meeting::kBlockBarrier, 0);
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __saturatef(float x) { return x > 1.f ? 1.f : x > 0.f ? x : 0.f; }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned which = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * which) & 0xff) << (8 * i);
  }
  return result;
}
using std::fabs;
using std::max;
using std::min;

namespace speechft::cuda {

inline float fast_exp2(float x) {
  const float exact = std::exp2(cuda_on_host::flushed(x));
  return cuda_on_host::flushed(cuda_on_host::perturbed(exact, 0x1p-22f));
}
inline float fast_log2(float x) {  // absolute near 1, relative elsewhere
  const float exact = std::log2(cuda_on_host::flushed(x));
  if (x == 1.f || x < 0.5f || x > 2.f) return cuda_on_host::perturbed(exact, 0x1p-22f);
  return exact + (__float_as_uint(x) & 1u ? 0x1p-22f : -0x1p-22f);
}
inline float fast_reciprocal(float x) { return cuda_on_host::perturbed(1.f / x, 0x1p-23f); }

inline void copy_async(float* shared, const float* global) {
  const float* begin = cuda_on_host::shared_memory;
  if (shared < begin || shared >= begin + cuda_on_host::kSharedLimit / sizeof(float)) {
    cuda_on_host::fail("an asynchronous copy to elsewhere than shared memory");
  }
  using namespace cuda_on_host;
  const bool at_once =
      state.order == Order::kForward || (state.order == Order::kRandom && next_random() % 2 == 0);
  if (at_once) {
    *shared = *global;
  } else {
    current->open_copies.push_back({shared, global});
  }
}
inline void close_copy_group() {
  auto& fiber = *cuda_on_host::current;
  fiber.copies.insert(fiber.copies.end(), fiber.open_copies.begin(), fiber.open_copies.end());
  fiber.open_copies.clear();
}
inline void wait_for_copies() {
  for (const auto& copy : cuda_on_host::current->copies) *copy.to = *copy.from;
  cuda_on_host::current->copies.clear();
}

inline void store_release(int* flag, int value) {
  *flag = value;
  if (cuda_on_host::state.order == cuda_on_host::Order::kRandom) cuda_on_host::yield();
}
inline int load_acquire(const int* flag) { return *flag; }
inline void back_off() {
  cuda_on_host::current->spins = true;
  cuda_on_host::yield();
}
template <typename T>
T* in_global(T* pointer) {
  return pointer;
}
inline float* dynamic_shared() { return cuda_on_host::shared_memory; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
                   size_t shared_bytes, cudaStream_t, Arguments... arguments) {
  if (shared_bytes > cuda_on_host::kSharedLimit || threads > 1024) return cudaErrorInvalidValue;
  const size_t floats = shared_bytes / sizeof(float);
  std::vector<float> memory;
  const std::function<void()> body = [&] { kernel(arguments...); };
  cuda_on_host::kernel = &body;
  cuda_on_host::block_size.x = threads;
  for (unsigned i = 0; i < blocks; ++i) {
    memory.assign(floats, std::nanf(""));
    cuda_on_host::shared_memory = memory.data();
    cuda_on_host::block_index.x = i;
    cuda_on_host::run_block(threads);
  }
  return cudaSuccess;
}

}  // namespace speechft::cuda

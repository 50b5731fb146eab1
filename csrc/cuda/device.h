// The few things that a kernel here asks of the device, under names of our own. A CUDA compiler
// maps them to instructions; any other compiler takes them from `cuda_on_host.h`, with which the
// tests build and run the kernels on the host.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <cstdint>

namespace speechft::cuda {

// 2^x, log2(x) and 1/x by the special function unit: errors of 1 to 2 ulp, denormals flushed.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Asynchronous copies of one float from global to shared memory, in groups that complete in order.
__device__ __forceinline__ void copy_async(float* shared, const float* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
               :
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "l"(global)
               : "memory");
}

__device__ __forceinline__ void close_copy_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Returns when this thread's groups are complete, all of them; other threads need a barrier to see
// it.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// A flag in shared memory between the warps of a block: what the storing thread wrote before is
// seen by whoever loads the flag's new value.
__device__ __forceinline__ void store_release(int* flag, int value) {
  asm volatile("st.release.cta.shared.b32 [%0], %1;"
               :
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(flag))), "r"(value)
               : "memory");
}

__device__ __forceinline__ int load_acquire(const int* flag) {
  int value;
  asm volatile("ld.acquire.cta.shared.b32 %0, [%1];"
               : "=r"(value)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(flag)))
               : "memory");
  return value;
}

__device__ __forceinline__ void back_off() { __nanosleep(20); }

// Tells the compiler where a pointer points, which it cannot see of one kept in shared memory.
template <typename T>
__device__ __forceinline__ T* in_global(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

__device__ __forceinline__ float* dynamic_shared() {
  extern __shared__ float4 speechft_dynamic_shared[];
  return reinterpret_cast<float*>(speechft_dynamic_shared);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
                   size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  const cudaError_t status = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
      static_cast<int>(shared_bytes));
  if (status != cudaSuccess) return status;
  kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace speechft::cuda

#else
#include "cuda_on_host.h"
#endif

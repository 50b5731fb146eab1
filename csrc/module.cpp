// speechft._C: the compiled kernels, on raw data pointers and sizes. It knows nothing of torch;
// speechft.functional checks the tensors, passes their addresses and keeps them alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/soft_dtw.h"
#ifdef SPEECHFT_CUDA
#include "cuda/soft_dtw.h"
#endif

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of speechft, on raw pointers.";
#ifdef SPEECHFT_CUDA
  module.attr("HAS_CUDA") = true;
#else
  module.attr("HAS_CUDA") = false;
#endif

  module.def("instruction_set", &speechft::cpu::soft_dtw_instruction_set,
             "What the CPU kernels run on here: avx512, avx2 or baseline.");
  module.def(
      "set_instruction_set",
      [](const std::string& name) {
        if (!speechft::cpu::soft_dtw_set_instruction_set(name.c_str()))
          throw std::invalid_argument("this processor or build cannot run '" + name + "'");
      },
      py::arg("name"), "Use one instruction set (for tests and benchmarks); '' chooses again.");
  module.def("soft_dtw_lanes", &speechft::cpu::soft_dtw_lanes,
             "Pairs that run side by side in the vector lanes.");

  using speechft::cpu::SoftDtwBatch;
  py::class_<SoftDtwBatch>(module, "SoftDtwBatch", "See csrc/cpu/soft_dtw.h. 0 is a null pointer.")
      .def(py::init([](uintptr_t cost, uintptr_t x_norms, uintptr_t y_norms, uintptr_t x_lengths,
                       uintptr_t y_lengths, int64_t pairs, int64_t rows, int64_t columns,
                       float gamma, int64_t bandwidth, uintptr_t value, bool want_alignment,
                       uintptr_t row_sums, uintptr_t column_sums) {
             return SoftDtwBatch{
                 pointer<float>(cost),        pointer<float>(x_norms),
                 pointer<float>(y_norms),     pointer<int64_t>(x_lengths),
                 pointer<int64_t>(y_lengths), pairs,
                 rows,                        columns,
                 gamma,                       bandwidth,
                 pointer<double>(value),      want_alignment,
                 pointer<float>(row_sums),    pointer<float>(column_sums)};
           }),
           py::kw_only(), py::arg("cost"), py::arg("x_norms"), py::arg("y_norms"),
           py::arg("x_lengths"), py::arg("y_lengths"), py::arg("pairs"), py::arg("rows"),
           py::arg("columns"), py::arg("gamma"), py::arg("bandwidth"), py::arg("value"),
           py::arg("want_alignment"), py::arg("row_sums"), py::arg("column_sums"));
  module.def(
      "soft_dtw_cpu",
      [](const std::vector<SoftDtwBatch>& batches, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::soft_dtw(batches, threads);
      },
      py::arg("batches"), py::arg("threads"), "Soft-DTW of several batches at once, in place.");

#ifdef SPEECHFT_CUDA
  using speechft::cuda::SoftDtwSegment;
  py::class_<SoftDtwSegment>(module, "SoftDtwSegment", "See csrc/cuda/soft_dtw.h.")
      .def(py::init([](uintptr_t cost, uintptr_t alignment, uintptr_t value, uintptr_t x_lengths,
                       uintptr_t y_lengths, int32_t rows, int32_t columns) {
             return SoftDtwSegment{pointer<float>(cost),        pointer<float>(alignment),
                                   pointer<float>(value),       pointer<int64_t>(x_lengths),
                                   pointer<int64_t>(y_lengths), rows,
                                   columns};
           }),
           py::kw_only(), py::arg("cost"), py::arg("alignment"), py::arg("value"),
           py::arg("x_lengths"), py::arg("y_lengths"), py::arg("rows"), py::arg("columns"));
  module.def("cuda_why_not", &speechft::cuda::why_not,
             "Why the CUDA kernels cannot run here; empty if they can.");
  module.def(
      "soft_dtw_cuda_workspace",
      [](const std::vector<SoftDtwSegment>& segments, int pairs, bool with_alignment,
         int weight_bytes) {
        const int64_t bytes = speechft::cuda::soft_dtw_workspace_bytes(
            segments.data(), static_cast<int>(segments.size()), pairs, with_alignment,
            weight_bytes);
        if (bytes < 0) throw std::invalid_argument("soft-DTW on CUDA does not take these sizes");
        return bytes;
      },
      py::arg("segments"), py::arg("pairs"), py::arg("with_alignment"), py::arg("weight_bytes"));
  module.def(
      "soft_dtw_cuda",
      [](int device, intptr_t stream, const std::vector<SoftDtwSegment>& segments, int pairs,
         float gamma, int64_t bandwidth, uintptr_t workspace, int64_t workspace_bytes,
         int weight_bytes) {
        const char* error = speechft::cuda::soft_dtw(
            device, stream, segments.data(), static_cast<int>(segments.size()), pairs, gamma,
            bandwidth, pointer<void>(workspace), workspace_bytes, weight_bytes);
        if (error) throw std::runtime_error(error);
      },
      py::kw_only(), py::arg("device"), py::arg("stream"), py::arg("segments"), py::arg("pairs"),
      py::arg("gamma"), py::arg("bandwidth"), py::arg("workspace"), py::arg("workspace_bytes"),
      py::arg("weight_bytes"), "Queue the wavefront on a stream: see csrc/cuda/soft_dtw.h.");
#endif
}

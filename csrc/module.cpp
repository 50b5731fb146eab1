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
}

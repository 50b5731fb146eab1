// speechft._C: the compiled kernels, on raw data pointers and sizes. It knows nothing of torch;
// speechft.functional checks the tensors, passes their addresses and keeps them alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/pages.h"
#include "cpu/pairwise_lse.h"
#include "cpu/philox.h"
#include "cpu/pointwise.h"
#include "cpu/pooling.h"
#include "cpu/soft_dtw.h"
#include "cpu/softmax.h"
#include "cpu/temporal_idm.h"
#include "cpu/threads.h"
#ifdef SPEECHFT_CUDA
#include "cuda/soft_dtw.h"
#endif

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<T*> found;
  for (const uintptr_t address : addresses) found.push_back(pointer<T>(address));
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of speechft, on raw pointers.";
#ifdef SPEECHFT_CUDA
  module.attr("HAS_CUDA") = true;
#else
  module.attr("HAS_CUDA") = false;
#endif

  module.def("instruction_set", &speechft::cpu::instruction_set_name,
             "What the CPU kernels run on here: avx512, avx2 or baseline.");
  module.def(
      "set_instruction_set",
      [](const std::string& name) {
        if (!speechft::cpu::set_instruction_set(name.c_str()))
          throw std::invalid_argument("this processor or build cannot run '" + name + "'");
      },
      py::arg("name"), "Use one instruction set (for tests and benchmarks); '' chooses again.");
  module.def("thread_pool", &speechft::cpu::thread_pool,
             "openmp: the CPU kernels share the pool of the process; threads: they start their own.");
  module.def("soft_dtw_lanes", &speechft::cpu::soft_dtw_lanes,
             "Pairs that run side by side in the vector lanes.");

  module.def("prefer_huge_pages", &speechft::cpu::prefer_huge_pages, py::arg("address"),
             py::arg("bytes"), "Ask for large pages in memory that is about to be filled.");

  using speechft::cpu::PairwiseSums;
  using speechft::cpu::PairwiseTile;
  using speechft::cpu::PairwiseWeights;
  py::class_<PairwiseTile>(module, "PairwiseTile", "See csrc/cpu/pairwise_lse.h.")
      .def(py::init([](uintptr_t products, int64_t rows, int64_t columns, int64_t stride,
                       int64_t first_row, int64_t first_column, float scale, uintptr_t row_labels,
                       uintptr_t column_labels, std::optional<int64_t> self_offset) {
             return PairwiseTile{pointer<float>(products),
                                 rows,
                                 columns,
                                 stride,
                                 first_row,
                                 first_column,
                                 scale,
                                 pointer<int32_t>(row_labels),
                                 pointer<int32_t>(column_labels),
                                 self_offset.value_or(speechft::cpu::NO_SELF)};
           }),
           py::kw_only(), py::arg("products"), py::arg("rows"), py::arg("columns"),
           py::arg("stride"), py::arg("first_row"), py::arg("first_column"), py::arg("scale"),
           py::arg("row_labels"), py::arg("column_labels"), py::arg("self_offset"));
  py::class_<PairwiseSums>(module, "PairwiseSums", "Addresses; 0 is a null pointer.")
      .def(py::init([](uintptr_t negative_maximum, uintptr_t negative_sum,
                       uintptr_t positive_maximum, uintptr_t positive_sum,
                       uintptr_t positive_logits) {
             return PairwiseSums{pointer<float>(negative_maximum), pointer<double>(negative_sum),
                                 pointer<float>(positive_maximum), pointer<double>(positive_sum),
                                 pointer<double>(positive_logits)};
           }),
           py::arg("negative_maximum") = 0, py::arg("negative_sum") = 0,
           py::arg("positive_maximum") = 0, py::arg("positive_sum") = 0,
           py::arg("positive_logits") = 0);
  py::class_<PairwiseWeights>(module, "PairwiseWeights", "Addresses; 0 is a null pointer.")
      .def(py::init([](uintptr_t negative_lse, uintptr_t negative, uintptr_t positive_lse,
                       uintptr_t positive, uintptr_t linear) {
             return PairwiseWeights{pointer<float>(negative_lse), pointer<float>(negative),
                                    pointer<float>(positive_lse), pointer<float>(positive),
                                    pointer<float>(linear)};
           }),
           py::arg("negative_lse") = 0, py::arg("negative") = 0, py::arg("positive_lse") = 0,
           py::arg("positive") = 0, py::arg("linear") = 0);
  module.def("pairwise_scratch", &speechft::cpu::pairwise_scratch, py::arg("rows"),
             py::arg("columns"), "Floats that pairwise_add works in.");
  module.def(
      "pairwise_add",
      [](const PairwiseTile& tile, const PairwiseSums& rows, const PairwiseSums& columns,
         uintptr_t scratch, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::pairwise_add(tile, rows, columns, pointer<float>(scratch), threads);
      },
      py::arg("tile"), py::arg("rows"), py::arg("columns"), py::arg("scratch"), py::arg("threads"),
      "Add a tile to the sums of exponentials of its rows and columns.");
  module.def(
      "pairwise_own",
      [](const PairwiseTile& tile, uintptr_t negative_lse, uintptr_t value, uintptr_t weight,
         int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::pairwise_own(tile, pointer<float>(negative_lse), pointer<double>(value),
                                    pointer<double>(weight), threads);
      },
      py::arg("tile"), py::arg("negative_lse"), py::arg("value"), py::arg("weight"),
      py::arg("threads"), "Each positive pair of a tile against all negative ones of its row.");
  module.def(
      "pairwise_gradient",
      [](const PairwiseTile& tile, const PairwiseWeights& rows, const PairwiseWeights& columns,
         bool own, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::pairwise_gradient(tile, rows, columns, own, threads);
      },
      py::arg("tile"), py::arg("rows"), py::arg("columns"), py::arg("own"), py::arg("threads"),
      "The gradient by the logits of a tile, in place.");

  module.def(
      "philox",
      [](uintptr_t keys, int64_t n, uint32_t first, int64_t blocks, uint32_t stream, uint32_t use,
         uintptr_t words) {
        speechft::cpu::philox(pointer<const int64_t>(keys), n, first, blocks, stream, use,
                              pointer<int64_t>(words));
      },
      "Random words of keys; see csrc/cpu/philox.h.");

  using speechft::cpu::PointwiseKind;
  using speechft::cpu::PointwiseStep;
  py::enum_<PointwiseKind>(module, "PointwiseKind")
      .value("scale", PointwiseKind::scale)
      .value("clip", PointwiseKind::clip)
      .value("mix", PointwiseKind::mix)
      .value("silence", PointwiseKind::silence)
      .value("quantise", PointwiseKind::quantise)
      .value("mu_law", PointwiseKind::mu_law);
  py::class_<PointwiseStep>(module, "PointwiseStep", "See csrc/cpu/pointwise.h. 0 is null.")
      .def(py::init([](PointwiseKind kind, uintptr_t value, uintptr_t first, uintptr_t second,
                       int64_t count, uintptr_t samples, bool short_samples, uintptr_t offsets,
                       uintptr_t counts, uintptr_t levels) {
             return PointwiseStep{kind,
                                  pointer<const float>(value),
                                  pointer<const int64_t>(first),
                                  pointer<const int64_t>(second),
                                  count,
                                  pointer<const void>(samples),
                                  short_samples,
                                  pointer<const int64_t>(offsets),
                                  pointer<const int64_t>(counts),
                                  pointer<const float>(levels)};
           }),
           py::arg("kind"), py::kw_only(), py::arg("value") = 0, py::arg("first") = 0,
           py::arg("second") = 0, py::arg("count") = 1, py::arg("samples") = 0,
           py::arg("short_samples") = false, py::arg("offsets") = 0, py::arg("counts") = 0,
           py::arg("levels") = 0);
  module.def(
      "pointwise",
      [](uintptr_t x, int64_t x_stride, uintptr_t y, int64_t batch, int64_t width,
         uintptr_t lengths, const std::vector<PointwiseStep>& steps, uintptr_t skipped,
         int64_t mixes, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::pointwise({pointer<const float>(x), x_stride, pointer<float>(y), batch,
                                  width, pointer<const int64_t>(lengths), steps.data(),
                                  static_cast<int64_t>(steps.size()), pointer<bool>(skipped),
                                  mixes},
                                 threads);
      },
      py::kw_only(), py::arg("x"), py::arg("x_stride"), py::arg("y"), py::arg("batch"),
      py::arg("width"), py::arg("lengths"), py::arg("steps"), py::arg("skipped"),
      py::arg("mixes"), py::arg("threads"), "Steps on each sample of waveforms, in one go.");

  using speechft::cpu::PoolingBatch;
  using speechft::cpu::PoolingGradient;
  py::class_<PoolingBatch>(module, "PoolingBatch", "See csrc/cpu/pooling.h. 0 is a null pointer.")
      .def(py::init([](uintptr_t x, int64_t batch, int64_t steps, int64_t channels,
                       uintptr_t lengths, uintptr_t weights, int64_t groups, uintptr_t scores,
                       int64_t correction, float epsilon, uintptr_t mean, uintptr_t deviation,
                       uintptr_t total) {
             return PoolingBatch{pointer<const float>(x),
                                 batch,
                                 steps,
                                 channels,
                                 pointer<const int64_t>(lengths),
                                 pointer<const float>(weights),
                                 groups,
                                 pointer<const float>(scores),
                                 correction,
                                 epsilon,
                                 pointer<float>(mean),
                                 pointer<float>(deviation),
                                 pointer<float>(total)};
           }),
           py::kw_only(), py::arg("x"), py::arg("batch"), py::arg("steps"), py::arg("channels"),
           py::arg("lengths"), py::arg("weights"), py::arg("groups"), py::arg("scores"),
           py::arg("correction"), py::arg("epsilon"), py::arg("mean"), py::arg("deviation"),
           py::arg("total"));
  py::class_<PoolingGradient>(module, "PoolingGradient", "Addresses; 0 is a null pointer.")
      .def(py::init([](uintptr_t mean, uintptr_t deviation, uintptr_t x, uintptr_t weights,
                       uintptr_t scores) {
             return PoolingGradient{pointer<const float>(mean), pointer<const float>(deviation),
                                    pointer<float>(x), pointer<float>(weights),
                                    pointer<float>(scores)};
           }),
           py::kw_only(), py::arg("mean"), py::arg("deviation"), py::arg("x") = 0,
           py::arg("weights") = 0, py::arg("scores") = 0);
  module.def(
      "pooling",
      [](const PoolingBatch& batch, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::pooling(batch, threads);
      },
      py::arg("batch"), py::arg("threads"), "Mean and deviation of each channel.");
  module.def(
      "pooling_gradient",
      [](const PoolingBatch& batch, const PoolingGradient& gradient, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::pooling_gradient(batch, gradient, threads);
      },
      py::arg("batch"), py::arg("gradient"), py::arg("threads"), "Gradients of the statistics.");

  using speechft::cpu::SoftDtwBatch;
  py::class_<SoftDtwBatch>(module, "SoftDtwBatch", "See csrc/cpu/soft_dtw.h. 0 is a null pointer.")
      .def(py::init([](uintptr_t cost, uintptr_t x_lengths, uintptr_t y_lengths, int64_t pairs,
                       int64_t rows, int64_t columns, float gamma, int64_t bandwidth,
                       uintptr_t value, bool want_alignment, uintptr_t x, uintptr_t y,
                       uintptr_t x_norms, uintptr_t y_norms, int64_t features, uintptr_t spans,
                       uintptr_t dense, uintptr_t row_sums, uintptr_t column_sums, float weight,
                       uintptr_t x_gradient, uintptr_t y_gradient) {
             SoftDtwBatch batch{};
             batch.cost = pointer<float>(cost);
             batch.x_lengths = pointer<int64_t>(x_lengths);
             batch.y_lengths = pointer<int64_t>(y_lengths);
             batch.pairs = pairs, batch.rows = rows, batch.columns = columns;
             batch.gamma = gamma, batch.bandwidth = bandwidth;
             batch.value = pointer<double>(value), batch.want_alignment = want_alignment;
             batch.x = pointer<float>(x), batch.y = pointer<float>(y);
             batch.x_norms = pointer<float>(x_norms), batch.y_norms = pointer<float>(y_norms);
             batch.features = features;
             batch.spans = pointer<int32_t>(spans), batch.dense = pointer<unsigned char>(dense);
             batch.row_sums = pointer<float>(row_sums);
             batch.column_sums = pointer<float>(column_sums);
             batch.weight = weight;
             batch.x_gradient = pointer<float>(x_gradient);
             batch.y_gradient = pointer<float>(y_gradient);
             return batch;
           }),
           py::kw_only(), py::arg("cost"), py::arg("x_lengths"), py::arg("y_lengths"),
           py::arg("pairs"), py::arg("rows"), py::arg("columns"), py::arg("gamma"),
           py::arg("bandwidth"), py::arg("value"), py::arg("want_alignment"), py::arg("x") = 0,
           py::arg("y") = 0, py::arg("x_norms") = 0, py::arg("y_norms") = 0,
           py::arg("features") = 0, py::arg("spans") = 0, py::arg("dense") = 0,
           py::arg("row_sums") = 0, py::arg("column_sums") = 0, py::arg("weight") = 1.0f,
           py::arg("x_gradient") = 0, py::arg("y_gradient") = 0);
  module.def("soft_dtw_cpu_workspace", &speechft::cpu::soft_dtw_workspace_bytes,
             py::arg("batches"), py::arg("threads"), "Bytes that soft_dtw_cpu works in.");
  module.def(
      "soft_dtw_cpu",
      [](const std::vector<SoftDtwBatch>& batches, int threads, uintptr_t workspace) {
        const py::gil_scoped_release release;
        speechft::cpu::soft_dtw(batches, threads, pointer<void>(workspace));
      },
      py::arg("batches"), py::arg("threads"), py::arg("workspace"),
      "Soft-DTW of several batches at once, in place.");
  module.def(
      "soft_dtw_cpu_gradient",
      [](const std::vector<SoftDtwBatch>& batches, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::soft_dtw_gradient(batches, threads);
      },
      py::arg("batches"), py::arg("threads"), "Gradients by the frames of pairs not dense.");

  using speechft::cpu::DinoBatch;
  using speechft::cpu::SinkhornRows;
  py::class_<DinoBatch>(module, "DinoBatch", "See csrc/cpu/softmax.h. 0 is a null pointer.")
      .def(py::init([](const std::vector<uintptr_t>& student, const std::vector<uintptr_t>& teacher,
                       const std::vector<int64_t>& student_stride,
                       const std::vector<int64_t>& teacher_stride,
                       const std::vector<uintptr_t>& gradient, uintptr_t bias, int64_t bias_stride,
                       int64_t rows, int64_t codes, float student_scale, float teacher_scale,
                       uintptr_t weights, uintptr_t losses, uintptr_t entropy, uintptr_t total,
                       bool skip_same) {
             return DinoBatch{pointers<const float>(student),
                              pointers<const float>(teacher),
                              student_stride,
                              teacher_stride,
                              pointers<float>(gradient),
                              pointer<const float>(bias),
                              bias_stride,
                              rows,
                              codes,
                              student_scale,
                              teacher_scale,
                              pointer<const float>(weights),
                              pointer<float>(losses),
                              pointer<float>(entropy),
                              pointer<float>(total),
                              skip_same};
           }),
           py::kw_only(), py::arg("student"), py::arg("teacher"), py::arg("student_stride"),
           py::arg("teacher_stride"), py::arg("gradient"), py::arg("bias"), py::arg("bias_stride"),
           py::arg("rows"), py::arg("codes"), py::arg("student_scale"), py::arg("teacher_scale"),
           py::arg("weights"), py::arg("losses"), py::arg("entropy"), py::arg("total"),
           py::arg("skip_same"));
  module.def("dino_workspace", &speechft::cpu::dino_workspace, py::arg("batch"),
             py::arg("threads"), "Floats that dino works in.");
  module.def(
      "dino",
      [](const DinoBatch& batch, uintptr_t workspace, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::dino(batch, pointer<float>(workspace), threads);
      },
      py::arg("batch"), py::arg("workspace"), py::arg("threads"),
      "DINO's loss, and its gradient by the student's logits.");
  py::class_<SinkhornRows>(module, "SinkhornRows", "See csrc/cpu/softmax.h. 0 is a null pointer.")
      .def(py::init([](uintptr_t logits, int64_t rows, int64_t codes, int64_t stride, float scale,
                       uintptr_t bias, uintptr_t valid) {
             return SinkhornRows{pointer<const float>(logits), rows,  codes, stride, scale,
                                 pointer<const float>(bias),   pointer<const uint8_t>(valid)};
           }),
           py::kw_only(), py::arg("logits"), py::arg("rows"), py::arg("codes"), py::arg("stride"),
           py::arg("scale"), py::arg("bias"), py::arg("valid"));
  module.def("sinkhorn_columns_workspace", &speechft::cpu::sinkhorn_columns_workspace,
             py::arg("rows"), py::arg("threads"), "Floats that sinkhorn_columns works in.");
  module.def(
      "sinkhorn_columns",
      [](const SinkhornRows& rows, uintptr_t result, uintptr_t workspace, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::sinkhorn_columns(rows, pointer<float>(result), pointer<float>(workspace),
                                        threads);
      },
      py::arg("rows"), py::arg("result"), py::arg("workspace"), py::arg("threads"),
      "Log-sum-exp of each column, its rows normalised; over scale.");
  module.def(
      "sinkhorn_assign",
      [](const SinkhornRows& rows, uintptr_t result, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::sinkhorn_assign(rows, pointer<float>(result), threads);
      },
      py::arg("rows"), py::arg("result"), py::arg("threads"), "Each row's softmax.");

  module.def(
      "temporal_idm",
      [](uintptr_t x, int64_t batch, int64_t steps, int64_t features, uintptr_t lengths,
         int64_t near, float margin, uintptr_t value, uintptr_t gradient, int threads) {
        const py::gil_scoped_release release;
        speechft::cpu::temporal_idm({pointer<const float>(x), batch, steps, features,
                                     pointer<const int64_t>(lengths), near, margin,
                                     pointer<double>(value), pointer<float>(gradient)},
                                    threads);
      },
      py::kw_only(), py::arg("x"), py::arg("batch"), py::arg("steps"), py::arg("features"),
      py::arg("lengths"), py::arg("near"), py::arg("margin"), py::arg("value"),
      py::arg("gradient"), py::arg("threads"),
      "Contrastive inverse difference moments; see csrc/cpu/temporal_idm.h. 0 is null.");

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

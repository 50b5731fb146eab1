#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU, from the root of the repository:
#
#     bash bench/gpu.sh
#
# builds speechft with CUDA into the Python at hand (PYTHON=...), runs the GPU tests and the contract
# suite, then the benchmarks, into ${OUT:-bench/results}. Needs torch, pybind11, scikit-build-core,
# cmake, ninja, pytest and hypothesis installed, nvcc, and no network. Ends within 8 minutes.
# Exit code: 0 if all passed, 1 if something failed (the benchmarks run all the same), 3 without a GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python=${PYTHON:-python3}
out=${OUT:-bench/results}
logs=${OUT:-build/gpu-logs}
mkdir -p "$out" "$logs" || exit 1
if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
    export PATH=/usr/local/cuda/bin:$PATH
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

summary=()
failed=0

# stage NAME SECONDS COMMAND...: run it under a limit, keep its log, remember how it went.
stage() {
    local name=$1 limit=$2 code start=$SECONDS
    shift 2
    echo
    echo "=== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$logs/$name.log"
    code=${PIPESTATUS[0]}
    local took=$((SECONDS - start)) verdict
    case $code in
        0) verdict=passed ;;
        124 | 137) verdict="FAILED: stopped at its limit of $limit s" ;;
        *) verdict="FAILED: exit code $code" ;;
    esac
    [ "$code" -eq 0 ] || failed=1
    summary+=("$(printf '%-14s %4d s  %s' "$name" "$took" "$verdict")")
    return "$code"
}

finish() {
    echo
    echo "=== summary ($SECONDS s)"
    printf '%s\n' "${summary[@]}"
    echo "results in $out, logs in $logs"
    exit "$failed"
}

if ! command -v "$python" >/dev/null; then
    echo "no $python here; set PYTHON"
    exit 1
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU here: torch of $("$python" -c 'import sys; print(sys.executable)') sees none, so nothing was run"
    exit 3
fi
"$python" - <<'PYTHON'
import sys, torch
gpu = torch.cuda.get_device_properties(0)
print(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor};",
      f"python {sys.version.split()[0]}, torch {torch.__version__}")
PYTHON
nvcc --version | tail -n 2

# Quoted: pip reads it as one option. Some systems refuse to install outside a venv without being told.
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
stage build 110 "$python" -m pip install --no-index --no-build-isolation --no-deps -v -e . || finish
stage doctor 30 "$python" -c '
import sys
from speechft import backends
reason = backends.why_not_cuda()
print("CUDA backend:", reason or "runs")
sys.exit(reason is not None)'

# What needs packages that are not here fails to be collected; the rest is to run all the same.
stage tests-gpu 70 "$python" -m pytest -q --maxfail=10 -m gpu --continue-on-collection-errors \
    -p no:cacheprovider tests
stage tests-contract 60 "$python" -m pytest -q --maxfail=10 -k "cuda or triton" -p no:cacheprovider \
    tests/functional
stage bench-soft_dtw 60 "$python" -m speechft.bench soft_dtw --quick --device cuda --output "$out"
for op in info_nce nt_xent sup_con barlow_twins dino sinkhorn statistics_pooling \
    attentive_statistics_pooling temporal_idm; do
    stage "bench-$op" 18 "$python" -m speechft.bench "$op" --device cuda --output "$out"
done
finish

#!/usr/bin/env bash
# Builds, tests and measures the compiled operators on a CUDA machine, in less than 10 minutes and without network:
#
#     tools/gpu_check.sh OUT_DIR           exit code 0: all steps passed, 1: some failed, 2: nothing to run on
#     tools/gpu_check.sh OUT_DIR --cpu     rehearsal of this script without CUDA and operators: tiny sizes
#
# OUT_DIR gets report.md (machine, steps, tables), the numbers as JSON, a picture, and log.txt. A step that fails or
# outlasts its limit does not stop the others. PYTHON chooses the interpreter (default: python3).
set -uo pipefail

usage() { echo "usage: tools/gpu_check.sh OUT_DIR [--cpu]" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] && [ "${1#-}" = "$1" ] || usage
[ $# -eq 1 ] || [ "$2" = --cpu ] || usage
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
device=cuda
[ $# -eq 1 ] || device=cpu
python=${PYTHON:-python3}
[ "${python#*/}" = "$python" ] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

budget=570  # s, for all steps together
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
: > "$parts/steps.tsv"
: > "$out/log.txt"

"$python" tools/gpu_report.py machine "$out" || exit 2
if [ $device = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no CUDA device here. --cpu behind the folder rehearses this check without one" >&2
    exit 2
fi

record() {  # RESULT SECONDS NAME
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >> "$parts/steps.tsv"
    printf '%-4s %4s s  %s\n' "$1" "$2" "$3"
}

step() {  # NAME LIMIT_S COMMAND...
    local name=$1 limit=$2 begin=$SECONDS left=$((budget - SECONDS)) status output
    shift 2
    [ "$left" -gt 1 ] || left=1
    [ "$limit" -lt "$left" ] || limit=$left
    output=$(mktemp -p "$parts")  # steps may run side by side
    timeout --kill-after=5 "$limit" "$@" > "$output" 2>&1
    status=$?
    {
        printf '\n==== %s (at most %s s)\n$ %s\n' "$name" "$limit" "$*"
        cat "$output"
    } >> "$out/log.txt"
    if [ $status -eq 0 ]; then
        record PASS $((SECONDS - begin)) "$name"
    elif [ $status -eq 124 ] || [ $status -eq 137 ]; then
        record FAIL $((SECONDS - begin)) "$name: stopped after $limit s"
    else
        record FAIL $((SECONDS - begin)) "$name: exit code $status"
        tail -n 15 "$output" | sed 's/^/    /'
    fi
}

ops() {  # DTYPE LIMIT_S ARGUMENTS...
    step "operators, $1" "$2" "$python" tools/benchmark_ops.py --device $device --dtype "$1" --ops kda kda_keys msda \
        --json "$out/ops_$1.json" --markdown "$parts/ops_$1.md" "${@:3}"
}

models() {  # NAME FILE LIMIT_S ARGUMENTS...
    step "$1" "$3" "$python" tools/benchmark_models.py --device $device \
        --json "$out/$2.json" --markdown "$parts/$2.md" "${@:4}"
}

detection() {  # DTYPE LIMIT_S ARGUMENTS...
    step "detection, $1" "$2" bash -o pipefail -c '"${@:2}" | tee "$1"' - "$parts/detection_$1.txt" \
        "$python" main.py --device $device --benchmark --benchmark_only "${@:3}"
}

levers() {  # DTYPE LIMIT_S ARGUMENTS...
    step "training levers, $1" "$2" "$python" tools/benchmark_training.py --device $device --dtype "$1" \
        --json "$out/levers_$1.json" --markdown "$parts/levers_$1.md" "${@:3}"
}

sanitize() {  # starts runs of small operators, with separate allocations so that none can hide an overrun in another
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
    if [ -z "$tool" ]; then
        record SKIP 0 "memcheck: no compute-sanitizer here"
        return
    fi
    if ! timeout 60 "$tool" "$python" -c 'import torch; torch.zeros(1, device="cuda")' > "$parts/memcheck" 2>&1; then
        cat "$parts/memcheck" >> "$out/log.txt"
        record SKIP 0 "memcheck: compute-sanitizer does not work on this machine, see log.txt"
        return
    fi
    for dtype in float32 bfloat16; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "memcheck, $dtype" 90 "$tool" --tool memcheck --error-exitcode 9 \
            "$python" tools/benchmark_ops.py --device cuda --dtype $dtype --sizes tiny --ops kda kda_keys msda \
            --only native --repeat 1 &
    done
    # Every kernel on empty maps and on locations that are NaN, infinite or far away.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "memcheck, hostile operands" 150 "$tool" --tool memcheck --error-exitcode 9 \
        "$python" -m pytest -q -p no:cacheprovider tests/models/ops/test_native.py \
        -k "cuda_empty or cuda_locations_far_away" &
}

if [ $device = cuda ]; then
    # Only for this GPU: the default list of architectures takes several times as long.
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$python" -c \
        'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')}
    export TORCH_CUDA_ARCH_LIST
    step "build" 200 "$python" -m pip install --no-index --no-build-isolation --no-deps ./models/ops
    # Steps that measure nothing run side by side. The kernels' tests by emulation and by compilation need no GPU:
    # `make test` has run them.
    step "models/ops/test.py" 120 "$python" models/ops/test.py &
    step "CUDA tests" 150 "$python" -m pytest -q -rs -n 4 -p no:cacheprovider tests -k "cuda and not cuda_kernels" &
    sanitize
    wait
    ops float32 60 --repeat 5
    ops bfloat16 60 --repeat 5 --picture "$out/ops_bfloat16.png"
    models "inference" inference 120 --dtype float32 bfloat16 --batch 1 8 --seconds 0.3 --rounds 2 \
        --models config/LiteDINO/r50_h3l1_2p1x3.py "config/DINO/DINO_4scale.py num_expansion=None"
    models "training, 60 steps" training 90 --models --dtype bfloat16 --train 60 --impl native
    lite=(-c config/LiteDINO/r50_h3l1_2p1x3.py --compile --options pretrained_backbone=False)
    detection float32 130 "${lite[@]}"
    detection bfloat16 130 --amp "${lite[@]}"
    levers float32 120 --batch 2 --steps 12
else
    tiny=(backbone=resnet18 hidden_dim=32 nheads=2 dim_feedforward=64 enc_layers=3 dec_layers=1 num_queries=20
          dn_number=4 num_select=20)
    ops float32 60 --sizes tiny --ops kda --repeat 1 --only torch --picture "$out/ops_float32.png"
    models "training, 2 steps" training 60 --models --train 2 --train_batch 1 --size 64 64 --impl torch \
        --options "${tiny[@]}"
    detection float32 150 -c config/LiteDINO/r50_h3l1_2p1x3.py --compile eager --benchmark_size 64 64 \
        --options pretrained_backbone=False "${tiny[@]}"
    levers float32 60 --size 64 64 --batch 1 --steps 1 --levers --num_workers 0 --impl torch --options "${tiny[@]}"
fi
"$python" tools/gpu_report.py report "$out" "$parts"

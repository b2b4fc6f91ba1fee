#!/usr/bin/env bash
# All that is to be known of a GPU, in one call under nine minutes (benchmarks/README.md):
#   bash benchmarks/gpu.sh OUT            on a machine with a GPU
#   bash benchmarks/gpu.sh --small OUT    the same in small, on any machine: does every step run?
# OUT gets results.jsonl (a line as soon as it is measured), doctor.json, log.txt and, last, the
# summary gpu-<machine>.md and .json. Exit code 1 where a step did not end well.
# PYTHON names the interpreter; the default is .venv's, or python3. GPU_SECONDS is the time after
# which no step goes on, 505 by default: the summary takes the rest of nine minutes.
set -uo pipefail

small=()
if [ "${1:-}" = --small ]; then small=(--small); shift; fi
if [ $# != 1 ]; then echo "usage: bash benchmarks/gpu.sh [--small] OUT" >&2; exit 2; fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# An installed package comes before the checkout, which has no pfedmma_deploy.cli by itself.
export PYTHONSAFEPATH=1 PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1
TMPDIR=$(mktemp -d)
export TMPDIR PFEDMMA_CACHE=$TMPDIR/cache
trap 'rm -rf "$TMPDIR"' EXIT
results=$out/results.jsonl log=$out/log.txt
: > "$results"; : > "$log"
# In small it is not speed that counts: any machine has time enough, however busy it is.
patience=$([ ${#small[@]} = 0 ] && echo 1 || echo 10)
end=${GPU_SECONDS:-$((505 * patience))}

step() { # NAME LIMIT COMMAND...: run it, LIMIT seconds at most, and note how it ended
    local name=$1 limit=$(($2 * patience)) began=$SECONDS left=$((end - SECONDS)) ended=done code=0
    shift 2
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 5 ]; then
        ended="not run: no time left"
    else
        printf '\n== %s, %s s at most\n' "$name" "$limit" >> "$log"
        timeout --kill-after=5 "$limit" "$@" >> "$log" 2>&1 || code=$?
        case $code in 0) ;; 124 | 137) ended="cut off" ;; *) ended="failed ($code)" ;; esac
    fi
    printf '{"measure": "step", "name": "%s", "ended": "%s", "wall": %d}\n' \
        "$name" "$ended" $((SECONDS - began)) >> "$results"
    printf '%-14s %-22s %4d s\n' "$name" "$ended" $((SECONDS - began))
}
measure() { # STEP LIMIT
    step "$1" "$2" "$python" -m benchmarks.gpu "$1" --out "$out" --scratch "$TMPDIR" "${small[@]}"
}

# In this order, because a call may be cut off. Models are exported on the processor meanwhile.
(measure export 260) & exporting=$!
if [ ${#small[@]} = 0 ]; then (measure export-second 260) & exporting_second=$!; fi
measure peak 40
step doctor 40 sh -c '"$0" -m pfedmma_deploy.cli doctor --json > "$1"' "$python" "$out/doctor.json"
tests=("$python" -m pytest -q -p no:cacheprovider -W default -m gpu tests/runtime/test_gpu.py)
if [ ${#small[@]} != 0 ]; then tests+=(--collect-only); fi
step tests 60 "${tests[@]}"
measure training 140
wait "$exporting"
measure rates 160
measure photos 50
if [ ${#small[@]} = 0 ]; then wait "$exporting_second"; measure rates-second 90; fi
measure paper 120
measure profile 50
measure clients 60
measure tensorrt 120
if [ ${#small[@]} = 0 ]; then measure training-compiled 90; fi

echo
"$python" -m benchmarks.gpu summary --out "$out" "${small[@]}" || exit 1
! grep -qE '"ended": "(failed|cut|not)' "$results"

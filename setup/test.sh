#!/usr/bin/env bash
# Everything there is, in stages; each stage's time is printed at the end, and how many lines of agent/
# the stages before integration ran. The first red stage ends the run. Needs root for the host's set-up and for the integration stage.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
# shellcheck disable=SC2034  # used by agent.sh
AGENT_USER=kindling RUNDIR=/run/kindling
# shellcheck source-path=SCRIPTDIR source=agent.sh
. setup/agent.sh

declare -a names=() times=()
began=$SECONDS

# lines_run: of what runs inside the tests' own processes; the integration stage's agents do not.
lines_run() {
  .venv/bin/coverage report --format=total 2>/dev/null |
    sed 's/.*/line coverage of agent\/ by unit, component and conformance tests: & %/' ||
    echo 'line coverage: not measured'
}

report() {
  printf '\n%-14s %8s\n' stage seconds
  for i in "${!names[@]}"; do printf '%-14s %8d\n' "${names[$i]}" "${times[$i]}"; done
  printf '%-14s %8d\n' total $((SECONDS - began))
  lines_run
}

stage() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  if ! "$@"; then
    names+=("$name (failed)")
    times+=($((SECONDS - start)))
    report
    printf 'test: stage %s failed; mend it and run: %s\n' "$name" "$*" >&2
    exit 1
  fi
  names+=("$name")
  times+=($((SECONDS - start)))
}

# As a new user sees it: the demo on the host itself, and once more on top of it. What it started ends
# here, whether it went well or not.
demo_twice() {
  local status=0 pid name
  setup/demo.sh && setup/demo.sh || status=1
  for name in fc-event fc-http fc2-event scf-web scf-job vercel by-http; do
    "${as_root[@]}" kindling remove "$name" --force >/dev/null || status=1
  done
  pid=$(agent_pid) || return 1
  signal_agent TERM || status=1
  for _ in $(seq 300); do
    agent_alive || return "$status"
    sleep 0.2
  done
  echo "test: the agent of the demo (pid $pid) does not end" >&2
  return 1
}

as_root=()
if [ "$(id -u)" != 0 ]; then
  as_root=(sudo)
  echo "test: setup/host.sh and the integration tests run as root through sudo"
fi

stage setup "${as_root[@]}" setup/host.sh --dev
stage tools make --no-print-directory .venv/.locked
rm -f .coverage
stage check make --no-print-directory check
stage unit make --no-print-directory COVERAGE=1 unit
stage component make --no-print-directory COVERAGE=1 component
stage conformance make --no-print-directory COVERAGE=1 conformance
stage compiled make --no-print-directory compiled
stage images make --no-print-directory images
stage software make --no-print-directory software
stage integration "${as_root[@]}" .venv/bin/python -m pytest -q tests/integration
# Every integration test has looked for leaks already; this looks at the host as a whole, where nothing
# of anybody else's is in the way.
if agent_alive; then
  echo "test: an agent of yours runs at /run/kindling: the demo and the leak check of the host are left out"
else
  stage demo demo_twice
  stage leak "${as_root[@]}" .venv/bin/python -m tests.leak
fi
report

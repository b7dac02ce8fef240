#!/bin/bash
# `make demo`: sets this host up, builds the sample images, starts the agent as the user kindling,
# deploys one function per contract, calls each, and leaves the agent running. Safe to run again.
# Needs root for setup/host.sh and to start the agent only; everything else goes through the CLI.
set -Eeuo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

# shellcheck disable=SC2034  # used by agent.sh
AGENT_USER=kindling
RUNDIR=/run/kindling
# shellcheck source-path=SCRIPTDIR source=agent.sh
. setup/agent.sh

CODE_MARK=/usr/lib/kindling/venv/.kindling-code
export PATH=$PATH:/usr/local/bin
LOG=/var/log/kindling.log
ADDRESS=http://127.0.0.1:8080
PYTHON=/usr/bin/python3
READY_S=60

STEP=start
MEND=
BEGAN=$SECONDS
TMP=$(mktemp -d /tmp/kindling-demo.XXXXXX)
trap 'rm -rf "$TMP"' EXIT
trap 'failed "line $LINENO: $BASH_COMMAND"' ERR

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
# The socket is open to root and to the group kindling.
cli=(kindling)
if [ "$(id -u)" != 0 ] && ! id -nG | grep -qw kindling; then cli=(sudo kindling); fi

say() { printf '\ndemo: %s\n' "$*"; }

# failed WHAT: one line with what failed and how to mend it.
failed() {
  trap - ERR
  printf '\ndemo: failed: %s (%s)%s\n' "$STEP" "$1" "${MEND:+: $MEND}" >&2
  exit 1
}

# step NAME MEND
step() { STEP=$1 MEND=$2; }

# typed COMMAND…: prints a command as one would type it.
typed() { printf '\n$ %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9_./:=@-]*\)'/\1/g"; }

shown() { typed "$@"; "$@"; }

has_systemd() { [ -d /run/systemd/system ]; }

setup() {
  step setup 'mend what setup names above, then run make demo again'
  if [ "$(id -u)" = 0 ]; then
    say 'the step that needs root: setup/host.sh (setup/host.sh --print says what it does here)'
  else
    say 'the step that needs root: sudo setup/host.sh (setup/host.sh --print says what it does here)'
    command -v sudo >/dev/null || failed 'this is not root and there is no sudo'
  fi
  : >"$TMP/downloads"
  "${as_root[@]}" env DOWNLOADS="$TMP/downloads" KINDLING_COMPILED="${KINDLING_COMPILED:-1}" setup/host.sh
  SETUP_S=$((SECONDS - BEGAN))
  DOWNLOAD_S=$(awk '{ms += $1} END {printf "%.0f", ms / 1000}' "$TMP/downloads")
}

images() {
  step 'sample images' 'run python3 images/build.py to see more'
  say 'sample images, from the packages of this host'
  local names=(hello-event hello-http hello-job)
  # The one that is compiled is for benchmarks; the demo does without it.
  if command -v gcc >/dev/null; then names+=(static); fi
  "$PYTHON" images/build.py --json "${names[@]}" >"$TMP/images.json"
  "$PYTHON" -c 'import json, sys; [print(name, path) for name, path in json.load(sys.stdin).items()]' \
    <"$TMP/images.json" >"$TMP/images"
  cut -d ' ' -f 1 "$TMP/images"
}

answers() { "${cli[@]}" status --json >"$TMP/status.json" 2>"$TMP/status.err"; }

# started_at: when the worker that answered last was started.
started_at() { "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["node"]["started_at"])' <"$TMP/status.json"; }

# code_is_newer: whether the installed code is newer than the worker.
code_is_newer() {
  local mark
  mark=$("${as_root[@]}" stat -c %Y "$CODE_MARK")
  [ "$mark" -ge "$(date -d "$(started_at)" +%s)" ]
}

# start_agent: by systemd, or as a process of its own session that outlives this script and its shell.
start_agent() {
  if has_systemd; then
    "${as_root[@]}" systemctl start kindling
    return
  fi
  LOG_BEGIN=$("${as_root[@]}" stat -c %s "$LOG" 2>/dev/null || echo 0)
  # shellcheck disable=SC2016  # expanded by the shell that is started
  "${as_root[@]}" bash -c '
    ulimit -n 1048576 2>/dev/null || true
    cd /var/lib/kindling
    exec env -i HOME=/var/lib/kindling LANG=C.UTF-8 XDG_RUNTIME_DIR="$2" \
      PATH=/usr/lib/kindling/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      setsid setpriv --reuid=kindling --regid=kindling --init-groups "$1" run >>"$3" 2>&1 </dev/null
  ' start /usr/local/bin/kindling "$RUNDIR" "$LOG" &
  AGENT=$!
  disown "$AGENT"
}

reload_agent() {
  if has_systemd; then
    "${as_root[@]}" systemctl reload kindling
  else
    shown "${cli[@]}" reload
  fi
}

log_command() { if has_systemd; then echo 'journalctl -fu kindling'; else echo "tail -f $LOG"; fi; }

last_words() {
  if has_systemd; then
    "${as_root[@]}" journalctl -u kindling -n 15 --no-pager -o cat
  else
    "${as_root[@]}" tail -c "+$((${LOG_BEGIN:-0} + 1))" "$LOG" | tail -n 15
  fi | plain
}

# wait_ready [STARTED]: until an agent answers; with STARTED until it is another worker than that one.
wait_ready() {
  local deadline=$((SECONDS + READY_S))
  while ! { answers && [ "$(started_at)" != "${1:-}" ]; }; do
    if [ -n "${AGENT:-}" ] && [ ! -e "/proc/$AGENT" ]; then
      last_words >&2
      failed 'the agent ended at once; its last words are above'
    fi
    if [ "$SECONDS" -ge "$deadline" ]; then
      last_words >&2
      plain <"$TMP/status.err" >&2
      failed "the agent is not ready after $READY_S s; its last words are above"
    fi
    sleep 0.2
  done
}

agent() {
  step agent "run 'kindling check'; the agent's whole log: $(log_command)"
  local before
  if ! answers; then
    say 'start the agent as the user kindling'
    start_agent
    wait_ready
  elif code_is_newer; then
    say 'the installed code is newer than the agent: reload it; functions go on running'
    before=$(started_at)
    reload_agent
    wait_ready "$before"
  else
    say 'the agent runs already'
  fi
  "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["node"]["summary"])' <"$TMP/status.json" | plain
}

import_images() {
  step import 'look at the line above, then at the log of the agent'
  say 'import the sample images'
  local name path
  while read -r name path; do
    shown "${cli[@]}" image import "$path" --name "$name"
  done <"$TMP/images"
}

# fresh NAME IMAGE CONTRACT [OPTION…]: deploys a function that has no instance yet, so that its first
# call is a cold start.
fresh() {
  local name=$1 image=kindling.local/$2:1 contract=$3
  shift 3
  step "function $name" "look at 'kindling logs $name' and 'kindling status'"
  if "$PYTHON" -c 'import json, sys; sys.exit(sys.argv[1] not in [f["name"] for f in json.load(sys.stdin)["functions"]])' \
    "$name" <"$TMP/status.json"; then
    "${cli[@]}" remove "$name" >/dev/null
  fi
  shown "${cli[@]}" deploy --name "$name" --image "$image" --contract "$contract" "$@" --wait
}

# call WANTED COMMAND…: a call that must be answered, with an answer that holds this text. The reply
# comes first, then the trace, with bars if this is a terminal.
call() {
  local wanted=$1 status=0
  shift
  typed "$@"
  if [ -t 1 ]; then export FORCE_COLOR=1; fi
  "$@" >"$TMP/reply" 2>"$TMP/trace" || status=$?
  unset FORCE_COLOR
  cat "$TMP/reply"
  if [ -n "$(tail -c 1 "$TMP/reply" | tr -d '\0')" ]; then printf '\n'; fi
  cat "$TMP/trace"
  [ "$status" = 0 ] || failed "the call ended with status $status"
  grep -qF -- "$wanted" "$TMP/reply" || failed "the reply does not hold '$wanted'"
}

contracts() {
  say 'one function per contract: the first call starts an instance (cold), the next one finds it (warm)'

  say 'fc, event function'
  fresh fc-event hello-event fc
  call 'hello, Ada' "${cli[@]}" invoke fc-event --data '{"name": "Ada"}' --trace
  call 'hello, Bob' "${cli[@]}" invoke fc-event --data '{"name": "Bob"}' --trace

  say 'fc, HTTP function'
  fresh fc-http hello-http fc --kind http
  call 'hello from GET /hearth?lit=1' "${cli[@]}" invoke fc-http --path '/hearth?lit=1' --trace
  call 'line 2' "${cli[@]}" invoke fc-http --path '/stream?n=3&ms=50' --trace

  say 'fc2'
  fresh fc2-event hello-event fc2
  call 'hello, Cleo' "${cli[@]}" invoke fc2-event --data '{"name": "Cleo"}' --trace

  say 'scf-web'
  fresh scf-web hello-http scf-web
  call 'hello from GET /' "${cli[@]}" invoke scf-web --path / --trace
  call 'echo me' "${cli[@]}" invoke scf-web --path /echo --data 'echo me' --trace

  say 'scf-job'
  fresh scf-job hello-job scf-job
  call 'exit code 0' "${cli[@]}" invoke scf-job --data '{"lines": 2}' --wait --trace

  say 'vercel'
  fresh vercel hello-http vercel
  call 'hello from GET /' "${cli[@]}" invoke vercel --path / --trace

  say 'over HTTP, to one that has not started yet'
  fresh by-http hello-http fc --kind http
  over_http "$ADDRESS/http/by-http/hearth"
  over_http "$ADDRESS/http/by-http/hearth"
}

# over_http URL: curl where there is one.
over_http() {
  if command -v curl >/dev/null; then
    call 'hello from GET /hearth' curl -sS -i -H 'X-Kindling-Trace: 1' "$1"
    return
  fi
  call 'hello from GET /hearth' "$PYTHON" -c 'import sys, urllib.request as web
reply = web.urlopen(web.Request(sys.argv[1], headers={"X-Kindling-Trace": "1"}))
print(reply.status, reply.headers, reply.read().decode(), sep="\n")' "$1"
}

next_steps() {
  local stop log sudo=''
  log=$(log_command)
  # As the user, and never as root: the pid is what the user's own file says.
  stop="setpriv --reuid=$AGENT_USER --regid=$AGENT_USER --clear-groups kill $(agent_pid)"
  if has_systemd; then stop='systemctl stop kindling'; fi
  if [ "$(id -u)" != 0 ]; then stop="sudo $stop" log="sudo $log"; fi
  if [ "${#cli[@]}" = 2 ]; then sudo='sudo '; fi
  say "done in $((SECONDS - BEGAN)) s, of which setup $SETUP_S s ($DOWNLOAD_S s of it downloads). The agent keeps running; try:"
  cat <<TEXT

  ${sudo}kindling status
  ${sudo}kindling invoke fc-event --data '{"name": "you"}' --trace
  ${sudo}kindling logs fc-http -f
  curl '$ADDRESS/http/fc-http/stream?n=5'
  ${sudo}kindling deploy --name mine --image kindling.local/hello-http:1 --contract vercel --wait
  ${sudo}kindling remove fc-http
  $log
  $stop      # stops the agent and its functions; make demo starts it again
TEXT
}

setup
images
agent
import_images
answers
contracts
next_steps

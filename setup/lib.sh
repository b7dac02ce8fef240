# shellcheck shell=bash
# What every part of setup shares: how it speaks, how it fails, how it tells download time apart.
# Sourced by host.sh and install.sh, never run. Changes nothing by itself.

# Places. All of them fixed: what must move is an option of host.sh.
# shellcheck disable=SC2034  # used by the files that source this one
{
LIB=/usr/lib/kindling
STATE=/var/lib/kindling
RUNDIR=/run/kindling
ETC=/etc/kindling
VENV=$LIB/venv
VERSIONS=$LIB/versions
# Compiled into the lazy engine. Stays empty: the agent mounts its own over it, in its own namespace.
LAZY_PLACE=/var/lib/soci-snapshotter-grpc
# Not in /run/lock, where everybody may put links.
LOCK=/run/kindling-setup.lock
AGENT_USER=kindling
}

# sbin: a root shell may lack it. The locale: df, apt and mkfs are read by their English output.
export PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH LC_ALL=C.UTF-8

PRINT=${PRINT:-0}
STEP=start
MEND=

say() { printf 'setup: %s\n' "$*"; }
note() { printf 'setup:   %s\n' "$*"; }
warn() { printf 'setup: warning: %s\n' "$*" >&2; }

# die WHAT: HOW TO MEND IT. In a subshell too: the mark keeps the shells above from telling it again.
die() {
  printf 'setup: failed: %s\n' "$*" >&2
  trap - ERR
  if [ -n "${TMP:-}" ]; then : >"$TMP/died"; fi
  exit 1
}

# step NAME MEND: names what is being done and how to mend it should it fail.
step() { STEP=$1 MEND=$2; }

# act WHAT COMMAND…: says what changes, then changes it; with --print only says it.
act() {
  local what=$1
  shift
  if [ "$PRINT" = 1 ]; then note "would $what"; return 0; fi
  note "$what"
  "$@"
}

# on_error LINE COMMAND: the one line for whatever no check foresaw, told by the outermost shell.
on_error() {
  if [ "$BASH_SUBSHELL" != 0 ] || [ -e "${TMP:-}/died" ]; then exit 1; fi
  printf "setup: failed: %s (line %s: %s)%s\n" "$STEP" "$1" "$2" "${MEND:+: $MEND}" >&2
  exit 1
}

# downloading COMMAND…: runs it and adds its wall time to the sum of downloads.
downloading() {
  local begin=$EPOCHREALTIME status=0
  "$@" || status=$?
  printf '%s\n' "$(( (${EPOCHREALTIME/[.,]/} - ${begin/[.,]/}) / 1000 ))" >>"$DOWNLOADS"
  return "$status"
}

# quietly COMMAND…: keeps a long log away from the terminal and shows its end when the command fails.
quietly() {
  local log status=0
  log=$(mktemp "$TMP/log.XXXXXX")
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" != 0 ]; then tail -n 15 "$log" >&2; fi
  return "$status"
}

# workspace: makes TMP and DOWNLOADS; a part called by host.sh shares the sum, not the directory.
workspace() {
  TMP=$(mktemp -d /tmp/kindling-setup.XXXXXX)
  chmod 0755 "$TMP"
  export DOWNLOADS=${DOWNLOADS:-$TMP/downloads}
  : >>"$DOWNLOADS"
}

download_s() { awk '{ms += $1} END {printf "%.0f", ms / 1000}' "$DOWNLOADS"; }

# alone: two setups at once would fight over the same files; the second one waits.
alone() {
  if [ -n "${KINDLING_SETUP_LOCKED:-}" ]; then return 0; fi
  mkdir -p "${LOCK%/*}"
  exec 9>"$LOCK"
  flock -w 600 9 || die "another setup has held $LOCK for ten minutes: end it and run again"
  export KINDLING_SETUP_LOCKED=1
}

has_systemd() { [ -d /run/systemd/system ]; }

need_root() {
  [ "$(id -u)" = 0 ] || die "$1 needs root: run it with sudo"
}

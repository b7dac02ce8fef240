#!/bin/bash
# Makes a Debian host ready for Kindling. The only part of Kindling that needs root; the agent runs
# as the user `kindling`. Safe to run again: what is in place is left alone. host.sh --help tells
# the options, host.sh --print what it would do here.
#
# The parts: lib.sh how it speaks and fails, agent.sh how it deals with an agent that runs, fetch.sh
# packages, slots.sh writable-layer slots, undo.sh the way back, install.sh the agent itself (also
# `make install`).
#
# shellcheck source-path=SCRIPTDIR
# shellcheck disable=SC2317  # functions are called through `act`
set -Eeuo pipefail
umask 022
HERE=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
# shellcheck source=lib.sh
. "$HERE/lib.sh"
# shellcheck source=agent.sh
. "$HERE/agent.sh"
# shellcheck source=fetch.sh
. "$HERE/fetch.sh"
# shellcheck source=slots.sh
. "$HERE/slots.sh"
# shellcheck source=undo.sh
. "$HERE/undo.sh"

# What --boot must know again without being told: written by every full run.
SETTINGS=$LIB/setup/settings
SLOTS=16
BIG_SLOTS=0
SLOTS_DIR=$STATE/slots
OLD_SLOTS_DIR=
TEST_STATE=/var/lib/kindling-test
TEST_SLOTS=8
DEV=0
BENCH=0
REFRESH=0
MODE=setup

SUBIDS=65536
UNITS=(kindling-host.service kindling.service)
SYSCTL=/etc/sysctl.d/60-kindling.conf
OPEN_FILES=/etc/security/limits.d/60-kindling.conf
COMMAND=/usr/local/bin/kindling
CONTROLLERS=(memory cpu cpuacct cpuset pids freezer devices blkio systemd)
MODULES=(overlay loop fuse tun bridge veth nf_tables)
# Disk a first run takes, measured: 450 MB below /usr/lib/kindling, of which mypyc is 90, 280 MB of
# packages, of which the compiler is 220, and 125 MB in passing for package lists and downloads.
INSTALL_MB=1000

usage() {
  cat <<'TEXT'
usage: setup/host.sh [options]

Makes this Debian host ready for Kindling: packages, containerd and rootlesskit in a place of their
own, the user `kindling`, cgroups, devices, kernel limits, writable-layer slots, and the agent.
Needs root; nothing else in Kindling does. Running it again changes only what is missing.

  --print           say everything it would do here, change nothing
  --dev             add what tests need, and slots for a second agent
  --bench           add what benches need as well: peers to compare with (580 MB more)
  --slots N         number of 512 MB writable-layer slots (default 16)
  --big-slots N     number of 10240 MB writable-layer slots (default 0); with none of either kind
                    writable layers are tmpfs, whose bytes count as the functions' memory
  --slots-dir DIR   where slots live (default /var/lib/kindling/slots)
  --refresh         fetch containerd and rootlesskit anew (security updates)
  --boot            only what a reboot forgets: devices, cgroups, limits, slots
  --undo            take everything back; apt packages stay
  --help            this text

What calls go through is compiled, a minute for new sources; KINDLING_COMPILED=0 leaves it plain Python.
Numbers and directories given once are kept for later runs. KINDLING_MIRROR=<address> overrides the
Debian mirror found in the host's apt sources.
TEXT
}

wrong_use() {
  printf 'setup: %s; try setup/host.sh --help\n' "$1" >&2
  exit 2
}

number() {
  [[ $2 =~ ^[0-9]{1,4}$ ]] || wrong_use "$1 wants a number from 0 to 9999, not '$2'"
  printf '%s' "$((10#$2))"
}

keep_settings() {
  mkdir -p "$LIB/setup"
  printf '%s\n' "SLOTS=$SLOTS" "BIG_SLOTS=$BIG_SLOTS" "SLOTS_DIR=$SLOTS_DIR" "DEV=$DEV" \
    "BENCH=$BENCH" >"$SETTINGS"
}

load_settings() {
  local key value
  [ -r "$SETTINGS" ] || return 0
  while IFS='=' read -r key value; do
    case $key in
      SLOTS | BIG_SLOTS | SLOTS_DIR | DEV | BENCH) printf -v "$key" '%s' "$value" ;;
    esac
  done <"$SETTINGS"
  OLD_SLOTS_DIR=$SLOTS_DIR
}

options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --slots | --big-slots | --slots-dir) [ $# -gt 1 ] || wrong_use "$1 wants a value" ;;
    esac
    case $1 in
      --print) PRINT=1 ;;
      --dev) DEV=1 ;;
      --bench) DEV=1 BENCH=1 ;;
      --refresh) REFRESH=1 ;;
      --boot) MODE=boot ;;
      --undo) MODE=undo ;;
      --slots) SLOTS=$(number "$1" "$2"); shift ;;
      --big-slots) BIG_SLOTS=$(number "$1" "$2"); shift ;;
      --slots-dir) SLOTS_DIR=$2; shift ;;
      --help | -h) usage; exit 0 ;;
      *) wrong_use "unknown option '$1'" ;;
    esac
    shift
  done
  [[ $SLOTS_DIR = /* && $SLOTS_DIR != / ]] || wrong_use "--slots-dir wants an absolute path, not '$SLOTS_DIR'"
  [[ $SLOTS_DIR != *[[:space:]\"\\]* ]] || wrong_use "--slots-dir wants a path without blanks, quotes and backslashes"
}

preflight() {
  step preflight ''
  [ "$(uname -m)" = x86_64 ] || die "this host is $(uname -m): Kindling needs x86-64"
  command -v apt-get >/dev/null || die "no apt-get: setup knows Debian 12 and 13 only"
  [ -e /proc/self/ns/user ] || die "this kernel has no user namespaces: boot one with CONFIG_USER_NS"
  if [ ! -x "$LIB/bin/containerd" ] || [ ! -x "$VENV/bin/python" ]; then
    local free
    free=$(($(free_kb /usr) / 1024))
    [ "$free" -ge "$INSTALL_MB" ] ||
      die "/usr has $free MB free, setup needs $INSTALL_MB MB: free some ('apt-get clean' helps)"
  fi
}

add_user() {
  useradd --system --user-group --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin \
    --comment 'Kindling worker node' "$AGENT_USER"
}

# free_subids: the first start, from 100000 up in steps of SUBIDS, where the range meets no range of
# /etc/subuid or /etc/subgid and no user or group.
free_subids() {
  {
    awk -F: '{print $2, $2 + $3 - 1}' /etc/subuid /etc/subgid 2>/dev/null || true
    getent passwd | awk -F: '{print $3, $3}'
    getent group | awk -F: '{print $3, $3}'
  } | awk -v size="$SUBIDS" '
    {low[NR] = $1; high[NR] = $2}
    END {
      for (start = 100000; start + size < 2 ^ 32; start += size) {
        clash = 0
        for (i = 1; i <= NR; i++) if (start <= high[i] && low[i] < start + size) {clash = 1; break}
        if (!clash) {print start; exit}
      }
    }'
}

subids() { awk -F: -v user="$AGENT_USER" '$1 == user && $3 >= 65536 {print $2; exit}' "$1" 2>/dev/null; }

user() {
  step 'user kindling' "look at 'getent passwd kindling' and /etc/subuid"
  local first
  if id "$AGENT_USER" >/dev/null 2>&1; then
    note "user $AGENT_USER in place"
  else
    act "make the system user and group $AGENT_USER" add_user
  fi
  touch_file /etc/subuid
  touch_file /etc/subgid
  if [ -n "$(subids /etc/subuid)" ] && [ -n "$(subids /etc/subgid)" ]; then
    note "subordinate ids in place: $(subids /etc/subuid)+$SUBIDS"
    return 0
  fi
  first=$(free_subids)
  [ -n "$first" ] || die "no free range of $SUBIDS ids in /etc/subuid: remove one that is not used"
  if [ -z "$(subids /etc/subuid)" ]; then
    act "give $AGENT_USER the subordinate uids $first-$((first + SUBIDS - 1))" \
      usermod --add-subuids "$first-$((first + SUBIDS - 1))" "$AGENT_USER"
  fi
  if [ -z "$(subids /etc/subgid)" ]; then
    act "give $AGENT_USER the subordinate gids $first-$((first + SUBIDS - 1))" \
      usermod --add-subgids "$first-$((first + SUBIDS - 1))" "$AGENT_USER"
  fi
}

touch_file() { if [ ! -e "$1" ] && [ "$PRINT" = 0 ]; then : >"$1"; fi; }

# directory PATH OWNER GROUP MODE
directory() {
  if [ "$(stat -c '%U:%G:%a' "$1" 2>/dev/null)" = "$2:$3:$4" ]; then return 0; fi
  act "make directory $1 ($2:$3 $4)" install -d -o "$2" -g "$3" -m "$4" "$1"
}

directories() {
  step directories 'look at the owner and mode of the directory named'
  directory "$ETC" root root 755
  # Sticky: the user may make what it likes in its home but not rename what root made there.
  directory "$STATE" root "$AGENT_USER" 1770
  directory "$RUNDIR" "$AGENT_USER" "$AGENT_USER" 750
  run_on_tmpfs
  directory "$LAZY_PLACE" root root 755
  if [ "$DEV" = 1 ]; then directory "$TEST_STATE" root "$AGENT_USER" 1770; fi
}

# run_on_tmpfs: records of what runs must not cost a disk. With systemd /run is one already; where it
# is not, RUNDIR becomes one, but never under an agent that runs, which would lose its files.
run_on_tmpfs() {
  case $(stat -f -c %T "$RUNDIR" 2>/dev/null || stat -f -c %T "${RUNDIR%/*}") in
    tmpfs | ramfs) return 0 ;;
  esac
  if [ "$PRINT" = 0 ] && agent_alive; then
    note "$RUNDIR is no tmpfs, and an agent runs there: run setup again when it is stopped"
    return 0
  fi
  act "mount a tmpfs at $RUNDIR, for /run is none here" mount_run
}

mount_run() {
  local ids
  ids=uid=$(id -u "$AGENT_USER"),gid=$(id -g "$AGENT_USER")
  mount -t tmpfs -o "mode=0750,$ids,nosuid,nodev,size=20%" kindling "$RUNDIR" ||
    warn "no tmpfs can be mounted at $RUNDIR: records of what runs cost the disk"
}

# What was installed is kept, to tell an edited file from an earlier one of ours.
CONFIG_KEPT=$LIB/setup/kindling.toml.installed

configuration() {
  step configuration "look at $ETC/kindling.toml"
  local what='all defaults'
  wanted_configuration >"$TMP/kindling.toml"
  if no_slots; then what="no slots: writable layers are tmpfs, and count as the functions' memory"; fi
  if [ ! -e "$ETC/kindling.toml" ]; then
    act "install $ETC/kindling.toml ($what)" install_configuration
  elif ! same "$ETC/kindling.toml" "$CONFIG_KEPT"; then
    note "$ETC/kindling.toml in place, edited"
    if no_slots && ! grep -q '^writable = "tmpfs"' "$ETC/kindling.toml"; then
      warn "there are no slots: write 'writable = \"tmpfs\"' below [storage] in $ETC/kindling.toml"
    fi
  elif ! same "$ETC/kindling.toml" "$TMP/kindling.toml"; then
    act "renew $ETC/kindling.toml, which nobody edited ($what)" install_configuration
  fi
}

no_slots() { [ $((SLOTS + BIG_SLOTS)) = 0 ]; }

# wanted_configuration: kindling.toml as this host needs it. Without slots an agent would not start.
wanted_configuration() {
  if no_slots; then
    sed -e 's/^# \(\[storage\]\)$/\1/' -e 's/^# \(writable = \)"slots".*/\1"tmpfs"/' "$HERE/kindling.toml"
  else
    cat "$HERE/kindling.toml"
  fi
}

install_configuration() {
  mkdir -p "$LIB/setup"
  install -m 0644 "$TMP/kindling.toml" "$ETC/kindling.toml"
  install -m 0644 "$TMP/kindling.toml" "$CONFIG_KEPT"
}

# device PATH MAJOR MINOR
device() {
  if [ ! -e "$1" ]; then
    act "make $1" make_device "$@"
  elif [ "$(stat -c %a "$1")" = 666 ]; then
    return 0
  fi
  act "open $1 to users (0666)" open_device "$1"
}

open_device() {
  mkdir -p "$LIB/setup"
  if ! grep -qs "^$1 " "$LIB/setup/devices-before"; then stat -c '%n %a' "$1" >>"$LIB/setup/devices-before"; fi
  chmod 0666 "$1"
}

make_device() {
  mkdir -p "${1%/*}"
  mknod "$1" c "$2" "$3" || die "$1 cannot be made: load its module, or pass the device into this container"
}

devices() {
  step devices "run 'modprobe fuse tun loop'"
  if [ "$PRINT" = 0 ] && command -v modprobe >/dev/null; then
    modprobe -qa "${MODULES[@]}" 2>/dev/null || true
  fi
  # Numbers: Documentation/admin-guide/devices.txt. systemd's udev gives both 0666 by itself.
  device /dev/fuse 10 229
  device /dev/net/tun 10 200
}

# limits: writes the keys of 60-kindling.conf that this kernel has and that are not higher already
# to SYSCTL, and applies them.
limits() {
  step 'kernel limits' "run 'sysctl -p $SYSCTL'"
  local line key want now source=$HERE/60-kindling.conf text=''
  [ -e "$source" ] || source=$HERE/../systemd/60-kindling.conf
  while IFS= read -r line; do
    if [[ $line =~ ^([a-z0-9_.-]+)\ =\ ([0-9]+)$ ]]; then
      key=${BASH_REMATCH[1]} want=${BASH_REMATCH[2]}
      now=$(sysctl_read "$key") || continue
      if [ "$now" -ge "$want" ] && ! grep -qsF "$key = " "$SYSCTL"; then continue; fi
      if [ "$now" -lt "$want" ]; then act "raise $key from $now to $want" sysctl_write "$key" "$want" "$now"; fi
    fi
    text+=$line$'\n'
  done <"$source"
  if [ "$text" = "$(cat "$SYSCTL" 2>/dev/null)"$'\n' ]; then note "kernel limits in place ($SYSCTL)"; return 0; fi
  act "install $SYSCTL" write_file "$SYSCTL" "$text"
}

# open_files: what systemd's unit gives the agent (LimitNOFILE=), for one that is started by a login
# program (runuser, su) too: pam_limits reads this.
open_files() {
  step 'open files' "look at $OPEN_FILES"
  local text
  text="# kindling setup: the agent's files and those of all its functions
$AGENT_USER - nofile 1048576
"
  if ! (ulimit -Hn 1048576) 2>/dev/null; then
    note "open files stay at $(ulimit -Hn) a process: root may not raise them here (CAP_SYS_RESOURCE)"
    return 0
  fi
  if [ "$text" = "$(cat "$OPEN_FILES" 2>/dev/null)"$'\n' ]; then note "open files in place ($OPEN_FILES)"; return 0; fi
  act "install $OPEN_FILES" write_file "$OPEN_FILES" "$text"
}

sysctl_read() { cat "/proc/sys/${1//.//}" 2>/dev/null; }

# sysctl_write KEY VALUE BEFORE: BEFORE is kept once, for --undo.
sysctl_write() {
  printf '%s' "$2" 2>/dev/null >"/proc/sys/${1//.//}" || { warn "$1 cannot be raised to $2 here"; return 0; }
  mkdir -p "$LIB/setup"
  if ! grep -qs "^$1 " "$LIB/setup/limits-before"; then printf '%s %s\n' "$1" "$3" >>"$LIB/setup/limits-before"; fi
}

write_file() { mkdir -p "${1%/*}" && printf '%s' "$2" >"$1"; }

# delegate_v1 CONTROLLER NAME: on v1 root makes one group per controller and gives it to the user
# with its files; below it the user makes groups and enforces limits.
delegate_v1() {
  local group=/sys/fs/cgroup/$1/$2 parent=/sys/fs/cgroup/$1 file
  mkdir -p "$group"
  if [ "$1" = cpuset ]; then
    for file in cpuset.cpus cpuset.mems; do
      if [ -z "$(cat "$group/$file")" ]; then cat "$parent/$file" >"$group/$file"; fi
    done
    printf 1 >"$group/cgroup.clone_children"
  fi
  own_group "$group"
}

own_group() {
  chown "$AGENT_USER:$AGENT_USER" "$1"
  find "$1" -maxdepth 1 -type f -exec chown "$AGENT_USER:$AGENT_USER" {} +
}

# delegate_v2 NAME: without systemd nobody else delegates; what cgroup-v2.rst calls the delegation
# files go to the user, the group's own limits stay root's.
delegate_v2() {
  local group=/sys/fs/cgroup/$1 controller
  for controller in cpu memory pids io; do
    printf '+%s' "$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null ||
      warn "controller $controller cannot be enabled at the top of the cgroup tree"
  done
  mkdir -p "$group"
  chown "$AGENT_USER:$AGENT_USER" "$group" "$group"/cgroup.{procs,threads,subtree_control}
}

owned_by_agent() { [ "$(stat -c %U "$1" 2>/dev/null)" = "$AGENT_USER" ]; }

cgroups() {
  step cgroups "look at 'mount -t cgroup,cgroup2'"
  local name names=(kindling) controller group
  if [ "$DEV" = 1 ]; then names+=(kindling-test); fi
  if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    if has_systemd; then note 'cgroups: v2, delegated by the unit (Delegate=)'; return 0; fi
    for name in "${names[@]}"; do
      if owned_by_agent "/sys/fs/cgroup/$name"; then note "cgroup $name in place"; continue; fi
      act "make and delegate /sys/fs/cgroup/$name" delegate_v2 "$name"
    done
    return 0
  fi
  for name in "${names[@]}"; do
    local have=()
    for controller in "${CONTROLLERS[@]}"; do
      group=/sys/fs/cgroup/$controller/$name
      if [ ! -d "/sys/fs/cgroup/$controller" ]; then continue; fi
      if owned_by_agent "$group/cgroup.procs"; then have+=("$controller"); continue; fi
      act "make and delegate $group" delegate_v1 "$controller" "$name"
    done
    if [ "${#have[@]}" != 0 ]; then note "cgroup $name in place: ${have[*]}"; fi
  done
  for controller in memory cpu pids freezer; do
    [ -d "/sys/fs/cgroup/$controller" ] || warn "no cgroup controller $controller: its limits cannot be enforced here"
  done
}

# Moving a process into a group waits for RCU grace periods, 10 ms and more of every container start,
# unless cgroups favour such changes over forks and exits (mount option favordynmods, Linux 6.0;
# cgroup-v2.rst). Set through any cgroup2 mount it holds for all hierarchies.
cgroup_moves() {
  step 'cgroup moves' "look at 'mount -t cgroup2'"
  local target options
  read -r target options < <(findmnt -n -t cgroup2 -o TARGET,OPTIONS | head -n 1) || true
  if [ -z "$target" ]; then note 'no cgroup2 mount: cgroup moves stay as they are'; return 0; fi
  if [[ ,$options, == *,favordynmods,* ]]; then note 'cgroups favour moves'; return 0; fi
  act "have cgroups favour moves (remount $target with favordynmods)" favour_moves "$target"
}

favour_moves() {
  if ! mount -o remount,favordynmods "$1" 2>/dev/null; then
    note 'this kernel has no favordynmods: starts take about 10 ms longer'
    return 0
  fi
  mkdir -p "$LIB/setup"
  printf '%s\n' "$1" >"$LIB/setup/favordynmods"
}

slots() {
  step slots "look at 'losetup -l' and 'df $SLOTS_DIR'"
  if [ -n "$OLD_SLOTS_DIR" ] && [ "$OLD_SLOTS_DIR" != "$SLOTS_DIR" ] && [ -e "$OLD_SLOTS_DIR" ]; then
    act "take back the slots at $OLD_SLOTS_DIR" take_back "$OLD_SLOTS_DIR"
  fi
  slot_room "$SLOTS_DIR" "$SLOTS" "$BIG_SLOTS"
  if no_slots; then note "no slots: writable layers are tmpfs ([storage] writable in $ETC/kindling.toml)"; fi
  if [ "$DEV" = 1 ]; then slot_room "$TEST_STATE/slots" "$TEST_SLOTS" 0; fi
}

# same FILE FILE
same() { cmp -s "$1" "$2"; }

setup_files() { printf '%s\n' "$HERE"/{host,lib,agent,fetch,slots,undo}.sh "$HERE/kindling.toml" "$HERE/../systemd/60-kindling.conf"; }

setup_copied() {
  local file
  while read -r file; do same "$file" "$LIB/setup/${file##*/}" || return 1; done < <(setup_files)
}

copy_setup() {
  local file
  mkdir -p "$LIB/setup"
  while read -r file; do
    install -m 0755 "$file" "$LIB/setup/.new"
    mv "$LIB/setup/.new" "$LIB/setup/${file##*/}"
  done < <(setup_files)
}

# units: what a reboot forgets is made again by this script itself, from a place of its own.
units() {
  step units "run 'systemctl daemon-reload'"
  local unit changed=0
  if setup_copied; then
    note "setup itself in place at $LIB/setup"
  else
    act "keep setup itself at $LIB/setup" copy_setup
  fi
  if ! has_systemd; then note 'systemd is not PID 1: no units; run setup/host.sh --boot after each boot'; return 0; fi
  for unit in "${UNITS[@]}"; do
    if same "$HERE/../systemd/$unit" "/etc/systemd/system/$unit"; then note "$unit in place"; continue; fi
    act "install /etc/systemd/system/$unit" install -m 0644 "$HERE/../systemd/$unit" "/etc/systemd/system/$unit"
    changed=1
  done
  if [ "$changed" = 1 ]; then act 'make systemd read its units again' systemctl daemon-reload; fi
}

agent() {
  step agent 'run setup/install.sh alone to see more'
  if [ "$PRINT" = 1 ]; then PRINT=1 "$HERE/install.sh" --print; return 0; fi
  "$BASH" "$HERE/install.sh"
}

full() {
  [ -x "$HERE/install.sh" ] || die "$HERE is the copy for --boot and --undo: run setup/host.sh of a clone of the repository"
  preflight
  host_packages
  private_binaries
  user
  directories
  configuration
  devices
  limits
  open_files
  cgroups
  cgroup_moves
  slots
  units
  if [ "$PRINT" = 0 ]; then keep_settings; record_host_versions; fi
  agent
}

boot() {
  id "$AGENT_USER" >/dev/null 2>&1 || die "no user $AGENT_USER: run setup/host.sh without --boot first"
  directories
  devices
  limits
  cgroups
  cgroup_moves
  slots
}

main() {
  local begin=$SECONDS
  load_settings
  options "$@"
  trap 'on_error "$LINENO" "$BASH_COMMAND"' ERR
  if [ "$PRINT" = 0 ]; then
    need_root setup/host.sh
    alone
  elif [ "$(id -u)" != 0 ]; then
    note 'not root: what only root can see counts as missing below'
  fi
  workspace
  trap 'rm -rf "$TMP"' EXIT
  case $MODE in
    setup) full ;;
    boot) boot ;;
    undo) undo ;;
  esac
  if [ "$PRINT" = 1 ]; then say 'nothing was changed (--print)'; return 0; fi
  say "done in $((SECONDS - begin)) s, of which downloads $(download_s) s"
}

# On one line, for --undo of the installed copy removes this very file.
main "$@"; exit

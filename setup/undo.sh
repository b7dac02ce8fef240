# shellcheck shell=bash
# The way back: everything setup made, in reverse. Apt packages stay (others may use them by now)
# and are named. Refuses while anything of the agent runs. Sourced by host.sh.

# agent_processes: pids of the agent's user and of its subordinate ids.
agent_processes() {
  local uid first proc owner
  uid=$(id -u "$AGENT_USER" 2>/dev/null) || return 0
  first=$(subids /etc/subuid)
  for proc in /proc/[0-9]*; do
    owner=$(stat -c %u "$proc" 2>/dev/null) || continue
    if [ "$owner" = "$uid" ] || { [ -n "$first" ] && [ "$owner" -ge "$first" ] && [ "$owner" -lt $((first + SUBIDS)) ]; }; then
      printf '%s\n' "${proc#/proc/}"
    fi
  done
}

remove_groups() {
  local top
  for top in /sys/fs/cgroup/*/"$1" /sys/fs/cgroup/"$1"; do
    if [ -d "$top" ] && [ ! -L "${top%/*}" ]; then
      find "$top" -depth -type d -exec rmdir {} + ||
        die "$top has processes: end those of its cgroup.procs files, then run --undo again"
    fi
  done
}

restore_limits() {
  local key value
  while read -r key value; do
    sysctl_restore "$key" "$value" || warn "$key cannot be set back to $value"
  done <"$LIB/setup/limits-before"
}

restore_devices() {
  local path mode
  while read -r path mode; do
    if [ -e "$path" ]; then chmod "$mode" "$path"; fi
  done <"$LIB/setup/devices-before"
}

sysctl_restore() { printf '%s' "$2" 2>/dev/null >"/proc/sys/${1//.//}"; }

remove_units() {
  local unit
  for unit in "${UNITS[@]}"; do
    systemctl --quiet disable "$unit" 2>/dev/null || true
    rm -f "/etc/systemd/system/$unit"
  done
  systemctl daemon-reload
}

# unfavour_moves TARGET: with the source named, mount(8) takes the options as given and merges none.
unfavour_moves() {
  local options
  options=$(findmnt -n -t cgroup2 -o OPTIONS "$1" | sed 's/,favordynmods//') || return 0
  mount -o "remount,$options" cgroup2 "$1" || warn "$1 keeps favordynmods"
}

undo() {
  step undo "see what is left with 'setup/host.sh --undo --print'"
  local pids name path
  pids=$(agent_processes)
  if [ -n "$pids" ]; then
    die "the agent is running (pids ${pids//$'\n'/ }): stop it first ('systemctl stop kindling', or end 'kindling run')"
  fi
  if has_systemd; then act "remove the units ${UNITS[*]}" remove_units; fi
  for path in "$SLOTS_DIR" "$TEST_STATE" "$STATE"; do
    if [ -e "$path" ]; then act "unmount what is below $path and remove it" take_back "$path"; fi
  done
  for name in kindling-test kindling; do
    if compgen -G "/sys/fs/cgroup/*/$name" >/dev/null || [ -d "/sys/fs/cgroup/$name" ]; then
      act "remove the cgroups $name" remove_groups "$name"
    fi
  done
  if [ -s "$LIB/setup/favordynmods" ]; then
    act 'have cgroups favour forks again' unfavour_moves "$(cat "$LIB/setup/favordynmods")"
  fi
  if [ -s "$LIB/setup/limits-before" ]; then act 'set kernel limits back to what they were' restore_limits; fi
  if [ -s "$LIB/setup/devices-before" ]; then act 'give devices the modes they had' restore_devices; fi
  if [ -e "$ETC/kindling.toml" ] && ! same "$CONFIG_KEPT" "$ETC/kindling.toml"; then
    warn "$ETC/kindling.toml was edited and stays"
  elif [ -d "$ETC" ]; then
    act "remove $ETC" rm -rf "$ETC"
  fi
  if left_policy; then act "remove the $POLICY that a killed setup left" clear_policy; fi
  if [ -e "$RUNDIR" ]; then act "remove $RUNDIR" take_back "$RUNDIR"; fi
  for path in "$SYSCTL" "$OPEN_FILES" "$COMMAND"; do
    if [ -e "$path" ] || [ -L "$path" ]; then act "remove $path" rm -rf "$path"; fi
  done
  if [ -d "$LAZY_PLACE" ] && [ -z "$(ls -A "$LAZY_PLACE")" ]; then act "remove $LAZY_PLACE" rmdir "$LAZY_PLACE"; fi
  if id "$AGENT_USER" >/dev/null 2>&1; then
    act "remove the user $AGENT_USER and its subordinate ids" userdel "$AGENT_USER"
  fi
  if [ -s "$LIB/packages" ]; then note "apt packages that setup added stay: $(sort -u "$LIB/packages" | tr '\n' ' ')"; fi
  if [ -d "$LIB" ]; then act "remove $LIB" rm -rf "$LIB"; fi
}

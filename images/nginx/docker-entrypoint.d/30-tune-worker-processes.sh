#!/bin/sh
# One worker for each processor that the quota pays for, found as the official image finds it: in the
# cgroup that mountinfo and /proc/self/cgroup name, whichever version it is.
set -eu

# own_directory TYPE PATTERN CONTROLLERS: where our own group of a hierarchy lies.
own_directory() {
  mount=$(grep -F -- " - $1 " /proc/self/mountinfo | grep -E "$2" | head -n 1 | cut -d ' ' -f 4,5)
  path=$(grep -E "^[0-9]+:$3:" /proc/self/cgroup | head -n 1 | cut -d : -f 3)
  [ -n "$mount" ] || return 1
  case ${mount%% *} in
    /) echo "${mount##* }$path" ;;
    "$path") echo "${mount##* }" ;;
    *) return 1 ;;
  esac
}

online=$(getconf _NPROCESSORS_ONLN)
quota=
if v1=$(own_directory cgroup '[ ,]cpu(,|$)' '([^:]*,)?cpu(,[^:]*)?') && [ -f "$v1/cpu.cfs_quota_us" ]; then
  quota=$(cat "$v1/cpu.cfs_quota_us") period=$(cat "$v1/cpu.cfs_period_us")
elif v2=$(own_directory cgroup2 . '') && [ -f "$v2/cpu.max" ]; then
  read -r quota period <"$v2/cpu.max"
fi
case $quota in
  '' | -1 | max) workers=$online ;;
  *) workers=$(((quota + period - 1) / period)) ;;
esac
echo "$0: $workers of $online processors"
sed -i.bak -r "s/^(worker_processes).*$/\\1 $workers;/" /etc/nginx/nginx.conf

#!/bin/sh
# Inside rootlesskit: a private containerd in the directory $1, then the program given; both end.
set -eu
dir=$1
shift
rm -rf /run/containerd
mkdir -p /run/containerd "$dir/state" "$dir/root"
if [ -d /sys/fs/cgroup/unified ]; then
  # crun 1.8 refuses hybrid hosts unless this is no cgroup2, yet makes a group here for every
  # container. In a tmpfs these pile up (a directory with a file in it); a v1 hierarchy removes them.
  mount --bind /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
fi
containerd -c "$dir/config.toml" >"$dir/containerd.log" 2>&1 &
containerd=$!
export PROBE_CONTAINERD=$containerd
status=0
"$@" || status=$?
# A probe may have replaced containerd; its pid is in the file then.
if [ -e "$dir/containerd.pid" ]; then kill -TERM "$(cat "$dir/containerd.pid")"; fi
kill -TERM "$containerd" 2>/dev/null || true
wait "$containerd" || true
exit "$status"

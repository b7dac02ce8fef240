#!/bin/sh
# Inside rootlesskit: a private containerd in the directory $1, then the program given; both end together.
set -eu
dir=$1
shift
rm -rf /run/containerd
mkdir -p /run/containerd "$dir/state" "$dir/root"
if [ -d /sys/fs/cgroup/unified ]; then
  # crun 1.8 refuses hybrid hosts unless this is no cgroup2, yet makes a group here for every container.
  # In a tmpfs these could never be removed (rmdir of a directory with a file), in a v1 hierarchy they are.
  mount --bind /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
fi
containerd -c "$dir/config.toml" >"$dir/containerd.log" 2>&1 &
containerd=$!
status=0
"$@" || status=$?
kill -TERM "$containerd"
wait "$containerd" || true
exit "$status"

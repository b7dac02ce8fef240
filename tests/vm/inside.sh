#!/bin/bash
# In the virtual machine of run.sh: sets it up, runs pytest with the words of /root/tests, tells how
# that ended in one line.
#
# An agent makes its groups below the one it is started in, as the user kindling. That is this unit's,
# which is therefore given to that user; nobody may stay in it (cgroup-v2.rst, "No Internal Process
# Constraint"), so that this shell moves where an agent would put itself.
set -Eeuo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
trap 'echo "vm: ended with $?"' EXIT

uname -r
emulated=$(systemd-detect-virt | grep -x qemu || true)
# A compiler that is emulated takes a quarter of an hour for a minute's work.
if [ -n "$emulated" ]; then export KINDLING_COMPILED=0; fi
setup/host.sh --dev
top=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
mkdir "$top/_run"
echo $$ >"$top/_run/cgroup.procs"
for group in "$top" "$top/_run"; do
  chown kindling:kindling "$group" "$group"/cgroup.{procs,threads,subtree_control}
done
if [ -n "$emulated" ]; then export KINDLING_TEST_SLOWER=12; fi
eval "set -- $(cat /root/tests)"
.venv/bin/python -m pytest -v -p no:cacheprovider "$@"

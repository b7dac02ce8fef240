#!/bin/bash
# `make test-vm`: this working tree's integration tests in a virtual machine of Debian 13 with systemd as
# PID 1 and cgroup v2 alone, for hosts that are something else. No part of `make test`. Needs root,
# mmdebstrap, qemu-system-x86 and a Debian mirror, 12 GB of disk and 6 GB of memory.
#
#   tests/vm/run.sh [PYTEST ARGUMENT…]   without arguments: PROVEN below
#
#   KINDLING_VM=DIR     where the machine is built, and removed at the end (/var/tmp/kindling-vm)
#   KINDLING_VM_CPU=    qemu's words for the processor: '-accel kvm -cpu host' where /dev/kvm can be
#                       opened, else '-accel tcg,thread=multi -cpu max', some 15 times slower. Where a
#                       guest dies with "KVM internal error", ask for the latter.
#
# Whatever needs the network is fetched here, with this host's settings of apt, pip and npm, but for
# what setup/host.sh itself fetches from the mirror. inside.sh is what runs in the machine.
#
# shellcheck source-path=SCRIPTDIR
set -Eeuo pipefail
HERE=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
REPO=${HERE%/*/*}
# shellcheck source=../../setup/lib.sh
. "$REPO/setup/lib.sh"
# shellcheck source=../../setup/fetch.sh
. "$REPO/setup/fetch.sh"

# What a program sees of its limits, and what else depends on the host's cgroups and kernel.
PROVEN=(as_elsewhere limits isolation cgroups real_software first_process owners_users_signals)
PLACE=${KINDLING_VM:-/var/tmp/kindling-vm}
ROOT=$PLACE/root
BASICS=(
  systemd-sysv udev dbus libpam-systemd linux-image-cloud-amd64 apparmor make
  debian-archive-keyring
)
DISK_GB=30

if [ "${1:-}" = --help ]; then sed -n '2,/^#$/s/^# \{0,1\}//p' "$0"; exit 0; fi
need_root tests/vm/run.sh
for program in mmdebstrap qemu-system-x86_64; do
  command -v "$program" >/dev/null || die "no $program: run 'apt-get install mmdebstrap qemu-system-x86'"
done
[ ! -e "$PLACE" ] || die "$PLACE is there already: remove it, or name another place in KINDLING_VM"
[ $# -gt 0 ] || set -- "${PROVEN[@]/#/tests/integration/test_}"

mkdir -p "$PLACE"
trap 'rm -rf "$PLACE"' EXIT

# in_root COMMAND: a shell in the machine's tree with this host's network and kernel. Its mounts are
# of a namespace of its own; a root of its own, for npm's build makes namespaces itself.
in_root() {
  # shellcheck disable=SC2016  # expanded by the shell that is started
  unshare --mount --propagation private bash -ec '
    mount --bind "$1" "$1"
    cd "$1"
    mount --rbind /dev dev
    mount --rbind /sys sys
    mount -t proc proc proc
    pivot_root . mnt
    cd /
    umount -l /mnt
    exec env HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -ec "$2"
  ' bash "$ROOT" "$1"
}

tree() {
  local all=("${HOST_PACKAGES[@]}" "${DEV_PACKAGES[@]}" "${BASICS[@]}") address
  address=$(mirror)
  mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
    --include="$(IFS=,; printf '%s' "${all[*]}")" trixie "$ROOT" \
    "deb $address trixie main" "deb $address trixie-updates main"
  # A host without such settings has nothing to pass on: grep finds none.
  apt-config dump | grep -E '^Acquire::(Check-Valid-Until|https?::Proxy) ' \
    >"$ROOT/etc/apt/apt.conf.d/90host" || true
  mkdir "$ROOT/root/kindling"
  git -C "$REPO" ls-files -z | (cd "$REPO" && tar --null -T - -cf -) | tar -C "$ROOT/root/kindling" -xf -
  # Settings of pip and npm may name this file.
  cp /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/"
  rm -f "$ROOT/etc/resolv.conf"
  cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf"
}

fetched() {
  in_root '
    cd /root/kindling
    apt-get -qq update
    python3 -m venv .venv
    .venv/bin/pip download -q --require-hashes --no-deps -d /opt/wheels -r requirements-dev.lock
    .venv/bin/pip install -q --no-index --find-links /opt/wheels --require-hashes -r requirements-dev.lock
    touch .venv/.locked
    python3 images/build.py
    python3 images/software.py
  '
  printf '[global]\nno-index = true\nfind-links = /opt/wheels\n' >"$ROOT/etc/pip.conf"
}

furnished() {
  local unit=/etc/systemd/system
  # Of qemu's own network (its documentation, "Using the user mode network stack").
  printf '[Match]\nType=ether\nKind=!*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' \
    >"$ROOT/etc/systemd/network/80-qemu.network"
  echo 'nameserver 10.0.2.3' >"$ROOT/etc/resolv.conf"
  echo '/dev/vda / ext4 defaults 0 1' >"$ROOT/etc/fstab"
  echo kindling-vm >"$ROOT/etc/hostname"
  cp "$HERE/kindling-tests.service" "$ROOT$unit/"
  printf '%q ' "$@" >"$ROOT/root/tests"
  in_root '
    systemctl --quiet enable systemd-networkd kindling-tests
    systemctl --quiet disable nginx docker-registry
    systemctl --quiet mask systemd-networkd-wait-online apt-daily.timer apt-daily-upgrade.timer
  '
  cp "$ROOT"/boot/vmlinuz-* "$PLACE/vmlinuz"
  cp "$ROOT"/boot/initrd.img-* "$PLACE/initrd"
  truncate -s "${DISK_GB}G" "$PLACE/disk"
  mke2fs -q -t ext4 -d "$ROOT" "$PLACE/disk"
  rm -rf "$ROOT"
}

processor() {
  if [ -n "${KINDLING_VM_CPU:-}" ]; then
    printf '%s\n' "$KINDLING_VM_CPU"
  elif [ -w /dev/kvm ]; then
    echo '-accel kvm -cpu host'
  else
    echo '-accel tcg,thread=multi -cpu max'
  fi
}

machine() {
  local cpu
  cpu=$(processor)
  say "starting the machine ($cpu)"
  # Two serial lines: the kernel's and systemd's words, and those of the tests, which come here.
  # shellcheck disable=SC2086  # several words
  qemu-system-x86_64 $cpu -smp 2 -m 6144 -display none -monitor none -no-reboot \
    -kernel "$PLACE/vmlinuz" -initrd "$PLACE/initrd" -append 'root=/dev/vda rw console=ttyS0 quiet' \
    -drive "file=$PLACE/disk,format=raw,if=virtio,cache=unsafe" \
    -nic user,model=virtio-net-pci -device virtio-rng-pci \
    -serial "file:$PLACE/console" -serial stdio </dev/null | tee "$PLACE/said"
}

say 'building a machine of Debian 13'
tree
fetched
furnished "$@"
machine || true  # how it ended is in its words
ended=$(sed -n 's/^vm: ended with \([0-9]*\).*/\1/p' "$PLACE/said")
if [ -z "$ended" ]; then
  tail -n 20 "$PLACE/console" >&2
  die 'the machine ended before its tests did: its console is above, KINDLING_VM_CPU may help'
fi
exit "$ended"

# shellcheck shell=bash
# Writable-layer slots: small ext4 images on loop devices, mounted once by root, used by the agent.
# The kernel enforces their size; the agent only makes overlays on them. Sourced by host.sh.
#
# Every path here is root's: DIR is root:kindling and, where its parent belongs to both, the parent
# has the sticky bit. The user kindling could otherwise put links in the way of what root does at
# the next boot. Only the inside of a mounted slot is the user's, from the moment root has done with
# it: roots_own and own_slot hold this (THREAT_MODEL.md, "Where root meets the user's files").
#
# A slot that is not mounted is made anew, never repaired: what a function wrote is worth nothing
# after its instance, and mkfs takes 8 ms.

BLOCK=4096
SLOT_OPTIONS=loop,discard,nodev,nosuid,noatime
# One slot needs about this much on disk while nothing is written in it.
SLOT_IDLE_KB=256
# One per 8 KB: functions unpack packages of small files into /tmp.
INODES_PER_MB=128

# slot_blocks CLASS_MB: the size of an image whose free blocks, as statfs tells them, are the class.
# On top of the class: the inode table (16 inodes a block), bitmaps and superblock copies of each
# group of 32768 blocks, and the 2 % (at most 4096 blocks) ext4 keeps for its own extents.
slot_blocks() {
  local class=$(($1 * 1048576 / BLOCK)) inodes=$(($1 * INODES_PER_MB)) blocks spare
  blocks=$((class + inodes / 16 + (class / 32768 + 2) * 3 + 32))
  spare=$((blocks / 49 + 1))
  blocks=$((blocks + (spare < 4096 ? spare : 4096)))
  printf '%s\n' "$blocks"
}

make_slot() {
  local dir=$1 class_mb=$2 number=$3 uid=$4 gid=$5 image
  image=$dir/$class_mb/$number.img
  mkdir -p "$dir/$class_mb/$number"
  rm -f "$image"
  (umask 077 && truncate -s "$(($(slot_blocks "$class_mb") * BLOCK))" "$image")
  mkfs.ext4 -q -F -b "$BLOCK" -m 0 -O '^has_journal,^resize_inode' -N "$((class_mb * INODES_PER_MB))" \
    -E lazy_itable_init=0 "$image"
  mount -o "$SLOT_OPTIONS" "$image" "$dir/$class_mb/$number"
  own_slot "$dir/$class_mb/$number" "$uid" "$gid"
}

# own_slot SLOT UID GID: gives a fresh slot to the user, its top last. Who owns the top may put links
# in the place of what is in it; until then all of it is root's, though the user can look inside.
own_slot() {
  mkdir -m 0755 "$1/upper" "$1/work"
  chown -h "$2:$3" "$1/upper" "$1/work" "$1"
}

# roots_own PATH: makes the directories of it that are missing, and refuses one that somebody but root
# could have put there or could replace: each must be root's, and writable by root alone or sticky.
# mkdir follows no link, and what root made in such a directory stays, so nothing changes behind us.
roots_own() {
  local rest=${1#/} at='' name next hops=0 facts
  while [ -n "$rest" ]; do
    name=${rest%%/*}
    rest=${rest#"$name"}
    rest=${rest#/}
    case $name in '' | .) continue ;; ..) at=${at%/*}; continue ;; esac
    next=$at/$name
    if [ ! -e "$next" ] && [ ! -L "$next" ]; then mkdir -m 0755 "$next" 2>/dev/null || true; fi
    facts=$(stat -c '%u %f %U' "$next") || die "$next cannot be made: choose another --slots-dir"
    [ "${facts%% *}" = 0 ] ||
      die "$next belongs to ${facts##* }, who could turn root's steps elsewhere: remove it, or choose another --slots-dir"
    if [ -L "$next" ]; then
      hops=$((hops + 1))
      [ "$hops" -le 40 ] || die "$1 leads in a circle of links: choose another --slots-dir"
      name=$(readlink "$next")
      if [ "${name#/}" != "$name" ]; then at=''; fi
      rest=${name#/}/$rest
      continue
    fi
    facts=0x${facts#* }
    facts=$((${facts% *}))
    # S_IWGRP or S_IWOTH without S_ISVTX
    if ((facts & 0022 && !(facts & 01000))); then
      die "$next can be written by others than root: run 'chmod go-w $next', or choose another --slots-dir"
    fi
    at=$next
  done
}

check_slot() {
  local dir=$1 class_mb=$2 number=$3 free
  free=$(($(stat -f -c '%a' "$dir/$class_mb/$number") * BLOCK / 1048576))
  [ "$free" -ge "$class_mb" ] ||
    die "slot $dir/$class_mb/$number offers $free MB instead of $class_mb: mkfs.ext4 of this host lays out more than slot_blocks in setup/slots.sh counts"
  as_agent test -w "$dir/$class_mb/$number/upper" ||
    die "user $AGENT_USER cannot reach $dir: run 'chmod o+x' on the directories above it"
}

# mounted DIR: what is mounted on it or below, one path a line.
mounted() { awk -v dir="$1" '$5 == dir || index($5, dir "/") == 1 {print $5}' /proc/self/mountinfo; }

drop_slot() {
  local dir=$1 class_mb=$2 number=$3
  if mountpoint -q "$dir/$class_mb/$number" && ! umount "$dir/$class_mb/$number" 2>/dev/null; then
    warn "slot $dir/$class_mb/$number is in use and stays: stop the agent and run setup again"
    return 0
  fi
  rm -f "$dir/$class_mb/$number.img"
  rmdir "$dir/$class_mb/$number"
}

# nearest PATH: the nearest directory of it that exists; df wants one.
nearest() {
  local path=$1
  while [ ! -d "$path" ]; do path=${path%/*}; path=${path:-/}; done
  printf '%s\n' "$path"
}

free_kb() { df -Pk "$(nearest "$1")" | awk 'NR == 2 {print $4}'; }

# slots_of DIR CLASS_MB COUNT: brings that class to exactly COUNT mounted slots.
slots_of() {
  local dir=$1 class_mb=$2 count=$3 uid gid number path new=() need free
  uid=$(id -u "$AGENT_USER" 2>/dev/null || printf 0)
  gid=$(id -g "$AGENT_USER" 2>/dev/null || printf 0)
  for ((number = 0; number < count; number++)); do
    if ! mountpoint -q "$dir/$class_mb/$number"; then new+=("$number"); fi
  done
  for path in "$dir/$class_mb"/*.img; do
    number=${path##*/}
    number=${number%.img}
    if [ -e "$path" ] && [ "$number" -ge "$count" ]; then
      act "take back slot $dir/$class_mb/$number" drop_slot "$dir" "$class_mb" "$number"
    fi
  done
  if [ "${#new[@]}" = 0 ]; then
    [ "$count" = 0 ] || note "$count slots of $class_mb MB in place at $dir/$class_mb"
    return 0
  fi
  # Sparse: full slots would need count x class. Refuse only where not even one could be filled.
  need=$((class_mb * 1024 + ${#new[@]} * SLOT_IDLE_KB))
  free=$(free_kb "$dir")
  [ "$free" -ge "$need" ] ||
    die "$dir has $((free / 1024)) MB free, slots of $class_mb MB need at least $((need / 1024)): free some, or point --slots-dir at a larger disk"
  act "make ${#new[@]} slots of $class_mb MB (sparse ext4 images on loop devices) at $dir/$class_mb" \
    make_slots "$dir" "$class_mb" "$uid" "$gid" "${new[@]}"
  if [ "$dir" = "${SLOTS_DIR:-}" ] && [ "$PRINT" = 0 ] && agent_alive; then
    note "the agent that runs takes new slots when it is reloaded (systemctl reload kindling), or restarted where systemd does not run"
  fi
}

# claim DIR: --undo removes DIR whole, so it must have been ours from the start.
claim() {
  if [ ! -d "$1" ] || [ -e "$1/slots.json" ] || [ -e "$1/512" ] || [ -z "$(ls -A "$1")" ]; then return 0; fi
  die "$1 holds other files: name a directory of its own, like $1/kindling-slots"
}

make_slots() {
  local dir=$1 class_mb=$2 uid=$3 gid=$4 number
  shift 4
  roots_own "$dir"
  claim "$dir"
  install -d -o root -g "$gid" -m 0750 "$dir" "$dir/$class_mb"
  for number in "$@"; do
    make_slot "$dir" "$class_mb" "$number" "$uid" "$gid" ||
      die "slot $dir/$class_mb/$number cannot be made or mounted: this kernel needs ext4 and loop devices ('modprobe loop ext4'; in a container, pass /dev/loop-control)"
  done
  check_slot "$dir" "$class_mb" "$1"
}

# describe_slots DIR CLASS COUNT …: DIR/slots.json, which the agent reads. overcommit is what all
# slots may hold together over what the disk had free when they were made; above 1 it can run out.
describe_slots() {
  local dir=$1 class_mb count promised=0 free classes='' overcommit file=$1/slots.json
  shift
  while [ $# -gt 0 ]; do
    class_mb=$1 count=$2
    shift 2
    [ "$count" -gt 0 ] || continue
    promised=$((promised + class_mb * count))
    classes+="${classes:+, }{\"class_mb\": $class_mb, \"count\": $count, \"inodes\": $((class_mb * INODES_PER_MB))}"
  done
  if grep -qsF "\"classes\": [$classes]" "$file" || [ "$PRINT" = 1 ]; then return 0; fi
  # No slots, and there never were any: nothing to describe.
  if [ ! -d "$dir" ]; then return 0; fi
  free=$(($(free_kb "$dir") / 1024))
  overcommit=$(awk -v p="$promised" -v f="$free" 'BEGIN {printf "%.3f", p / (f > 0 ? f : 1)}')
  if [ "$promised" -gt "$free" ]; then
    warn "slots at $dir promise $promised MB, the disk has $free: when it is full, functions get write errors before their limit"
  fi
  cat >"$file.new" <<JSON
{
  "kind": "loop",
  "classes": [$classes],
  "path": "$dir/<class_mb>/<number>",
  "promised_mb": $promised,
  "disk_free_mb": $free,
  "overcommit": $overcommit
}
JSON
  chown "root:$AGENT_USER" "$file.new"
  chmod 0644 "$file.new"
  mv "$file.new" "$file"
}

# slot_room DIR COUNT_512 COUNT_10240
slot_room() {
  if [ -e "$1" ] || [ -L "$1" ]; then roots_own "$1"; fi
  slots_of "$1" 512 "$2"
  slots_of "$1" 10240 "$3"
  describe_slots "$1" 512 "$2" 10240 "$3"
}

# take_back DIR: unmounts what is below it, frees the loop devices with that, and removes it.
take_back() {
  local dir=$1 path
  roots_own "${dir%/*}"
  while read -r path; do
    umount "$path" || die "$path is in use: end what uses it ('fuser -vm $path'), then run --undo again"
  done < <(mounted "$dir" | sort -r)
  rm -rf --one-file-system "$dir"
}

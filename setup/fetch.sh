# shellcheck shell=bash
# Packages: the host's own by apt, and containerd, rootlesskit and the lazy engine from Debian testing
# through a private apt state. Replaces nothing the host has, starts no service. Sourced by host.sh.

SUITE=forky
HOST_PACKAGES=(
  crun runc slirp4netns uidmap nftables iproute2 tcc
  python3 python3-venv ca-certificates util-linux e2fsprogs kmod zstd isal
  gcc libc6-dev python3-dev
)
DEV_PACKAGES=(
  nginx-light wrk docker-registry busybox-static procps shellcheck systemd openssl
  skopeo umoci
)
# The peers of benches and what draws their pictures, for --bench alone: 120 MB to download, 580 MB
# unpacked, most of it Go's toolchain.
BENCH_PACKAGES=(podman haproxy caddy golang-go librsvg2-bin fonts-dejavu-core)
# Services of DEV_PACKAGES and BENCH_PACKAGES as package:unit. Never started by us, and not left to start at boot.
DEV_SERVICES=(
  nginx-light:nginx.service docker-registry:docker-registry.service
  haproxy:haproxy.service caddy:caddy.service
  podman:podman.service podman:podman.socket podman:podman-auto-update.service
  podman:podman-auto-update.timer podman:podman-restart.service
)

# package, least version, the binaries to show in $LIB/bin, and why that version
#   containerd 2.1: sandbox API for anchored shims, snapshot labels through the Transfer service
#   rootlesskit 2.0: --detach-netns
PRIVATE=(
  'containerd 2.1 containerd,ctr,containerd-shim-runc-v2'
  'rootlesskit 2.0 rootlesskit,rootlessctl'
)
# Likewise, but a node works without: lazy images. 24 MB to download, 106 MB unpacked.
OPTIONAL=('soci-snapshotter 0.4 soci-snapshotter-grpc,soci')
API_PACKAGE=golang-github-containerd-containerd-api-dev

POLICY=/usr/sbin/policy-rc.d

missing_packages() {
  local name
  for name in "$@"; do
    # ${Status} is dpkg's own placeholder.
    # shellcheck disable=SC2016
    case $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) in
      'install ok installed') ;;
      *) printf '%s\n' "$name" ;;
    esac
  done
}

# without_services COMMAND…: runs it where no package starts a service. The policy is a mount that only
# this command and its children see: however they end, nothing of it is left. Where the host has no
# policy of its own an empty file, which is not executable and so says nothing, carries the mount.
without_services() {
  if [ ! -e "$POLICY" ]; then : >"$POLICY"; fi
  printf '#!/bin/sh\n# kindling setup: no service is started by installing a package\nexit 101\n' >"$TMP/policy"
  chmod 0755 "$TMP/policy"
  # shellcheck disable=SC2016  # expanded by the shell that is started
  unshare --mount --propagation private bash -c '
    mount --bind "$1" "$2" || exit 125
    shift 2
    exec "$@"
  ' bash "$TMP/policy" "$POLICY" "$@"
}

# clear_policy: removes what carried the mount, and what setups of earlier versions left if killed.
clear_policy() {
  if [ -e "$POLICY" ] && [ ! -s "$POLICY" ] && [ ! -x "$POLICY" ]; then rm -f "$POLICY"; fi
  if grep -qs 'kindling setup' "$POLICY"; then rm -f "$POLICY"; fi
  if [ -e "$POLICY.kindling-saved" ]; then mv "$POLICY.kindling-saved" "$POLICY"; fi
}

left_policy() {
  [ -e "$POLICY.kindling-saved" ] || grep -qs 'kindling setup' "$POLICY" ||
    { [ -e "$POLICY" ] && [ ! -s "$POLICY" ] && [ ! -x "$POLICY" ]; }
}

HOST_APT=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)

host_apt() { "${HOST_APT[@]}" "$@"; }

install_packages() {
  downloading quietly host_apt update || warn 'apt-get update had errors; going on with the lists there are'
  downloading quietly host_apt install -y --no-install-recommends --download-only "$@" ||
    die "apt cannot download $*: run 'apt-get update' and look at its first error"
  quietly without_services "${HOST_APT[@]}" install -y --no-install-recommends "$@" ||
    die "apt cannot install $*: run 'dpkg --configure -a', then setup again"
  clear_policy
}

# silence_services PACKAGE…: only what this run installed; a service the host had is the host's.
silence_services() {
  local entry
  for entry in "${DEV_SERVICES[@]}"; do
    if [[ " $* " = *" ${entry%%:*} "* ]]; then
      act "keep ${entry#*:} from starting at boot" systemctl --quiet disable "${entry#*:}" 2>/dev/null || true
    fi
  done
}

host_packages() {
  step 'host packages' "run 'apt-get update' and look at its first error"
  local wanted=("${HOST_PACKAGES[@]}") missing name
  if [ "$DEV" = 1 ]; then
    for name in "${DEV_PACKAGES[@]}"; do
      # Another flavour of nginx does as well, and installing this one would replace it.
      if [ "$name" = nginx-light ] && [ -x /usr/sbin/nginx ]; then continue; fi
      wanted+=("$name")
    done
  fi
  if [ "$BENCH" = 1 ]; then wanted+=("${BENCH_PACKAGES[@]}"); fi
  if left_policy; then act "remove the $POLICY that a killed setup left" clear_policy; fi
  mapfile -t missing < <(missing_packages "${wanted[@]}")
  if [ "${#missing[@]}" = 0 ]; then note "host packages in place: ${wanted[*]}"; return 0; fi
  act "install with apt, starting no service: ${missing[*]}" install_packages "${missing[@]}"
  if [ "$PRINT" = 0 ]; then
    mkdir -p "$LIB"
    printf '%s\n' "${missing[@]}" >>"$LIB/packages"
  fi
  if command -v systemctl >/dev/null; then silence_services "${missing[@]}"; fi
}

# mirror: the address apt uses for this release on this host. apt itself reads its sources, so both
# formats, and mirror lists, work. KINDLING_MIRROR overrides it.
mirror() {
  local codename
  if [ -n "${KINDLING_MIRROR:-}" ]; then printf '%s\n' "$KINDLING_MIRROR"; return 0; fi
  # shellcheck disable=SC1091  # the host's
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-stable}")
  # shellcheck disable=SC2016  # apt's own placeholders
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v name="$codename" '($1 == name || $1 == "stable") && $2 == "main" {if (!found) print $3; found = 1}'
}

keyring() {
  local path
  for path in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
    if [ -s "$path" ]; then printf '%s\n' "$path"; return 0; fi
  done
  die "no Debian archive keyring: run 'apt-get install debian-archive-keyring'"
}

# testing_apt COMMAND…: apt-get with lists, cache and sources of our own below TMP.
testing_apt() {
  apt-get -q -o "Dir::Etc::sourcelist=$TMP/apt/testing.sources" -o Dir::Etc::sourceparts=- \
    -o "Dir::State::lists=$TMP/apt/lists" -o "Dir::Cache=$TMP/apt/cache" \
    -o Acquire::Languages=none "$@"
}

open_testing() {
  local uri ring
  uri=$(mirror)
  [ -n "$uri" ] || die "no Debian mirror in this host's apt sources: run setup with KINDLING_MIRROR=<its address>"
  ring=$(keyring)
  mkdir -p "$TMP"/apt/{lists,cache/archives}/partial "$TMP/apt/debs"
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
    "$uri" "$SUITE" "$ring" >"$TMP/apt/testing.sources"
  if id _apt >/dev/null 2>&1; then chown -R _apt "$TMP/apt"; fi
  downloading testing_apt -o APT::Update::Error-Mode=any update >"$TMP/apt.log" 2>&1 || {
    tail -n 15 "$TMP/apt.log" >&2
    die "$(no_lists "$TMP/apt.log")"
  }
}

# no_lists LOG: says why `apt-get update`, which wrote it, gave no lists, and the way out.
no_lists() {
  if grep -q 'is expired' "$1"; then
    printf '%s\n' "the mirror's lists of suite $SUITE are older than Debian lets them be: run setup with KINDLING_MIRROR=<a mirror kept up to date>, or, if this one stands still on purpose, write 'Acquire::Check-Valid-Until \"false\";' to a file below /etc/apt/apt.conf.d"
  else
    printf '%s\n' "the mirror of this host's apt sources cannot be reached or does not serve suite $SUITE: check the network, or run setup with KINDLING_MIRROR=<a full Debian mirror>"
  fi
}

# get_deb APT PACKAGE: downloads it with that apt into $TMP/apt/debs and prints the file.
get_deb() {
  local apt=$1 package=$2 file
  rm -f "$TMP/apt/debs/${package}"_*.deb
  (cd "$TMP/apt/debs" && downloading "$apt" download "$package" >"$TMP/apt.log" 2>&1) || {
    tail -n 5 "$TMP/apt.log" >&2
    return 1
  }
  for file in "$TMP/apt/debs/${package}"_*.deb; do printf '%s\n' "$file"; done
}

# version_of BINARY: what it says of itself; empty when it cannot run here (missing, or libc too old).
version_of() {
  "$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1 || true
}

new_enough() { [ -n "$1" ] && dpkg --compare-versions "$1" ge "$2"; }

# unpack FILE PACKAGE LEAST BINARIES SOURCE: unpacks it beside the old one and turns the links over
# only if it runs here. At no moment is a binary missing: a running containerd starts shims at any time.
unpack() {
  local file=$1 package=$2 least=$3 binaries=$4 source=$5 version fresh binary found old
  version=$(dpkg-deb -f "$file" Version)
  fresh=$LIB/pkg/${package}_$version
  if [ -d "$fresh" ] && [ "$(readlink -f "$LIB/bin/${binaries%%,*}")" = "$fresh/usr/bin/${binaries%%,*}" ]; then
    record "$package" "$version" "$source"
    return 0
  fi
  rm -rf "$fresh"
  mkdir -p "$fresh" "$LIB/bin"
  dpkg-deb -x "$file" "$fresh"
  found=$(version_of "$fresh/usr/bin/${binaries%%,*}")
  if ! new_enough "$found" "$least"; then
    rm -rf "$fresh"
    return 1
  fi
  for binary in ${binaries//,/ }; do
    [ -e "$fresh/usr/bin/$binary" ] || continue
    ln -sfn "../pkg/${fresh##*/}/usr/bin/$binary" "$LIB/bin/.new"
    mv -T "$LIB/bin/.new" "$LIB/bin/$binary"
  done
  for old in "$LIB/pkg/$package"_*; do
    if [ "$old" != "$fresh" ]; then rm -rf "$old"; fi
  done
  record "$package" "$version" "$source"
}

# record NAME VERSION SOURCE: one line in $VERSIONS, replacing the earlier one of that name.
record() {
  # shellcheck disable=SC2153  # of lib.sh
  touch "$VERSIONS"
  { grep -v "^$1 " "$VERSIONS" || true; printf '%s %s %s\n' "$1" "$2" "$3"; } | sort >"$VERSIONS.new"
  mv "$VERSIONS.new" "$VERSIONS"
  chmod 0644 "$VERSIONS"
}

# obtain PACKAGE LEAST BINARIES: testing first; the host's own suite when that one does not run here.
obtain() {
  local package=$1 least=$2 binaries=$3 file
  if file=$(get_deb testing_apt "$package") && unpack "$file" "$package" "$least" "$binaries" "debian:$SUITE"; then
    return 0
  fi
  warn "$package of Debian $SUITE cannot be had or does not run on this host; trying the host's own suite"
  downloading quietly host_apt update || true
  file=$(get_deb host_apt "$package") && unpack "$file" "$package" "$least" "$binaries" host-suite
}

fetch() {
  obtain "$@" ||
    die "no $1 >= $2 that runs on this host, neither in $SUITE nor in its own suite: see the lines above; Debian 12 is the oldest host that works"
}

fetch_optional() {
  obtain "$@" || warn "no $1 >= $2 that runs on this host: images are always unpacked whole"
}

private_binaries() {
  step 'private binaries' 'check the network and the apt sources, then run setup again'
  local entry package least binaries found opened=0 how=fetch
  for entry in "${PRIVATE[@]}" optional "${OPTIONAL[@]}"; do
    if [ "$entry" = optional ]; then how=fetch_optional; continue; fi
    read -r package least binaries <<<"$entry"
    found=$(version_of "$LIB/bin/${binaries%%,*}")
    if [ "$REFRESH" = 0 ] && new_enough "$found" "$least" && grep -qs "^$package " "$VERSIONS"; then
      note "$package $found in place (least is $least)"
      continue
    fi
    if [ "$opened" = 0 ]; then
      act "read the package lists of Debian $SUITE into a private apt state" open_testing
      opened=1
    fi
    act "unpack $package (>= $least) below $LIB" "$how" "$package" "$least" "$binaries"
  done
  if [ "$DEV" = 1 ]; then
    if [ -d "$LIB/dev/usr/share/gocode" ] && [ "$REFRESH" = 0 ]; then
      note "containerd's own .proto files in place below $LIB/dev"
    else
      if [ "$opened" = 0 ]; then
        act "read the package lists of Debian $SUITE into a private apt state" open_testing
      fi
      act "unpack $API_PACKAGE below $LIB/dev, for the test that compares .proto files" fetch_protos
    fi
  fi
}

fetch_protos() {
  local file
  file=$(get_deb testing_apt "$API_PACKAGE") ||
    die "the mirror has no $API_PACKAGE in $SUITE: run setup with KINDLING_MIRROR=<a full Debian mirror>"
  rm -rf "${LIB:?}/dev"
  mkdir -p "$LIB/dev"
  dpkg-deb -x "$file" "$LIB/dev"
}

record_host_versions() {
  local name version
  for name in crun runc slirp4netns nftables tcc; do
    # shellcheck disable=SC2016  # dpkg's own placeholder
    version=$(dpkg-query -W -f '${Version}' "$name" 2>/dev/null) || continue
    if ! grep -qsx "$name $version host" "$VERSIONS"; then record "$name" "$version" host; fi
  done
}

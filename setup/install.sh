#!/bin/bash
# Installs the agent of this repository into its own environment below /usr/lib/kindling: the pinned
# dependencies (by hash) when requirements.lock changed, the package itself when its content did.
# Called by host.sh; alone it is `make install`. The repository is only read.
#
# shellcheck source-path=SCRIPTDIR
# shellcheck disable=SC2317  # functions are called through `act`
set -Eeuo pipefail
umask 022
HERE=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
REPO=${HERE%/*}
# shellcheck source=lib.sh
. "$HERE/lib.sh"

# The system's Python: one below root's home cannot be executed by the user kindling.
PYTHON=/usr/bin/python3
COMMAND=/usr/local/bin/kindling
# Kept in the environment: the hash of what it was made from.
LOCK_MARK=$VENV/.kindling-lock
CODE_MARK=$VENV/.kindling-code

usage() {
  cat <<'TEXT'
usage: setup/install.sh [--print] [--help]

Installs the agent from this working tree into /usr/lib/kindling/venv and links it as
/usr/local/bin/kindling. Needs root. Does nothing when that is what is installed already.
TEXT
}

# The build tool, pinned by hash with the development tools, is the one thing installed from there.
build_lock() { awk '/^setuptools==/ {on = 1} on {print} on && !/\\$/ {exit}' "$REPO/requirements-dev.lock"; }

lock_hash() {
  { "$PYTHON" --version; cat "$REPO/requirements.lock"; build_lock; } | sha256sum | cut -d ' ' -f 1
}

code_hash() {
  (cd "$REPO" && {
    sha256sum pyproject.toml
    find agent -name __pycache__ -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
  } | sha256sum | cut -d ' ' -f 1)
}

# Isolated: neither the caller's directory nor its PYTHON* settings reach it. It compiles what it installs.
pip() { "$VENV/bin/python" -I -m pip --disable-pip-version-check --quiet "$@"; }

# dependencies HASH
dependencies() {
  rm -f "$LOCK_MARK" "$CODE_MARK"
  if ! "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info[:2] != tuple(map(int, sys.argv[1].split("."))))' \
    "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" 2>/dev/null; then
    quietly "$PYTHON" -m venv --clear "$VENV" ||
      die "no virtual environment can be made: run 'apt-get install python3-venv'"
  fi
  { cat "$REPO/requirements.lock"; build_lock; } >"$TMP/lock"
  # Everything is pinned, so nothing is left to resolve; downloads come first, to be timed apart.
  downloading quietly pip download --require-hashes --no-deps --dest "$TMP/wheels" -r "$TMP/lock" ||
    die "pip cannot download what requirements.lock names: see the lines above, check the network and pip's index"
  quietly pip install --require-hashes --no-deps --no-index --find-links "$TMP/wheels" -r "$TMP/lock" ||
    die "pip cannot install what requirements.lock names: see the lines above"
  printf '%s\n' "$1" >"$LOCK_MARK"
}

# package HASH, taken before copying: a file changed meanwhile is installed the next time.
package() {
  local source=$TMP/source
  rm -f "$CODE_MARK"
  mkdir "$source"
  # A copy: building in the tree would leave build/ and egg-info there, and the tree may be root's alone.
  (cd "$REPO" && find agent -name __pycache__ -prune -o -type f -print0 | copy_to "$source")
  cp "$REPO/pyproject.toml" "$source/"
  if [ -e "$REPO/README.md" ]; then cp "$REPO/README.md" "$source/"; else : >"$source/README.md"; fi
  chmod -R u+rwX,go+rX,go-w "$source"
  quietly pip install --no-deps --no-index --no-build-isolation --force-reinstall "$source" ||
    die "the package does not build: see the lines above"
  printf '%s\n' "$1" >"$CODE_MARK"
}

# copy_to DIR: the files named on its input, NUL after each.
copy_to() { tar --null -T - -cf - | tar -C "$1" --no-same-owner -xf -; }

main() {
  local lock code
  case ${1:-} in
    '') ;;
    --print) PRINT=1 ;;
    --help | -h) usage; exit 0 ;;
    *) printf "setup: unknown option '%s'; try setup/install.sh --help\n" "$1" >&2; exit 2 ;;
  esac
  trap 'on_error "$LINENO" "$BASH_COMMAND"' ERR
  step agent 'remove /usr/lib/kindling/venv and run it again'
  [ -d "$REPO/agent" ] || die "no agent/ beside $HERE: run it from a clone of the repository"
  if [ "$PRINT" = 0 ]; then need_root setup/install.sh; alone; fi
  workspace
  trap 'rm -rf "$TMP"' EXIT
  lock=$(lock_hash) code=$(code_hash)
  if [ "$(cat "$LOCK_MARK" 2>/dev/null)" = "$lock" ]; then
    note "agent's dependencies in place ($VENV)"
  else
    act "install the dependencies of requirements.lock, by hash, into $VENV" dependencies "$lock"
  fi
  if [ "$(cat "$CODE_MARK" 2>/dev/null)" = "$code" ]; then
    note 'agent in place'
  else
    act "install the agent of $REPO" package "$code"
  fi
  if [ "$(readlink "$COMMAND" 2>/dev/null)" = "$VENV/bin/kindling" ]; then return 0; fi
  act "link $COMMAND" ln -sfn "$VENV/bin/kindling" "$COMMAND"
}

main "$@"

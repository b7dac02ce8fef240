#!/bin/bash
# Installs the agent of this repository below /usr/lib/kindling: the pinned dependencies (by hash) when
# requirements.lock changed, the package itself when its content did. Called by host.sh; alone it is
# `make install`. The repository is only read.
#
#   deps/<id>     an environment with what requirements.lock names; <id> is its hash
#   agents/<id>   an environment with the package, which finds its dependencies by a .pth file, and
#                 the first process of its instances, built from init/; what a warm call touches is
#                 compiled, unless KINDLING_COMPILED=0 or that fails
#   compiler/<id> mypyc, as requirements-dev.lock pins it
#   compiled/<id> what it made, under a hash of all that went into it (setup/compile.py)
#   venv          a link to the agent that is installed: what a start and a reload take
#
# Each is made whole before the link is turned over by one rename, so that a command that starts finds
# the old agent or the new one. A process stays with the one that it began with until it is reloaded;
# that one, and the last one before the link was turned, are not removed.
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
DEPS=$LIB/deps
AGENTS=$LIB/agents
COMPILERS=$LIB/compiler
COMPILED=$LIB/compiled
# Written last into an environment: without it, it is the rest of a set-up that was cut short.
MARK=.kindling-complete
# Of the agent that is installed, touched when the link is turned over: demo.sh compares its time.
CODE_MARK=.kindling-code
# In an agent that is pure Python: "chosen: why" or "failed: why" (agent/rootless/installed.py).
PURE_NOTE=.kindling-pure
# What mypyc is made of, in requirements-dev.lock.
MYPYC='ast-serialize|librt|mypy|mypy-extensions|pathspec|setuptools|typing-extensions'

usage() {
  cat <<'TEXT'
usage: setup/install.sh [--print] [--help]

Installs the agent from this working tree as /usr/lib/kindling/venv and links its command as
/usr/local/bin/kindling. Needs root. Does nothing when that is what is installed already. An agent
that runs goes on with the code it has until it is reloaded (HUP).

KINDLING_COMPILED=0 installs plain Python alone. Otherwise what a warm call touches is compiled: a
minute, once for the same sources. Where that fails, plain Python is installed, with a warning.
TEXT
}

# dev_lock NAMES: these lines of the development tools' lock. Building takes nothing else from there.
dev_lock() {
  awk -v name="^($1)==" '$0 ~ name {on = 1} on {print} on && !/\\$/ {on = 0}' "$REPO/requirements-dev.lock"
}

build_lock() { dev_lock setuptools; }

lock_hash() {
  { "$PYTHON" --version; cat "$REPO/requirements.lock"; build_lock; } | sha256sum | cut -d ' ' -f 1
}

code_hash() {
  (cd "$REPO" && {
    sha256sum pyproject.toml setup/compile.py
    find agent init -name __pycache__ -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
  } | sha256sum | cut -d ' ' -f 1)
}

# environment DIR [OPTION…]: a fresh virtual environment.
environment() {
  rm -rf "$1"
  mkdir -p "${1%/*}"
  quietly "$PYTHON" -m venv "${@:2}" "$1" ||
    die "no virtual environment can be made: run 'apt-get install python3-venv'"
}

# Isolated: neither the caller's directory nor its PYTHON* settings reach it. It compiles what it installs.
# pip DIR ARGUMENT…
pip() { "$1/bin/python" -I -m pip --disable-pip-version-check --quiet "${@:2}"; }

# dependencies DIR
dependencies() {
  environment "$1"
  { cat "$REPO/requirements.lock"; build_lock; } >"$TMP/lock"
  pinned "$1" || die "$(cat "$TMP/why")"
  : >"$1/$MARK"
}

# pinned DIR: puts what $TMP/lock names into it; says in $TMP/why what went wrong.
pinned() {
  # Everything is pinned, so nothing is left to resolve; downloads come first, to be timed apart.
  if ! downloading quietly pip "$1" download --require-hashes --no-deps --dest "$TMP/wheels" -r "$TMP/lock"; then
    echo "pip cannot download what the locks name: see the lines above, check the network and pip's index" >"$TMP/why"
    return 1
  fi
  if ! quietly pip "$1" install --require-hashes --no-deps --no-index --find-links "$TMP/wheels" -r "$TMP/lock"; then
    echo 'pip cannot install what the locks name: see the lines above' >"$TMP/why"
    return 1
  fi
}

# compiler DIR DEPENDENCIES: an environment that compiles, and sees the dependencies' types.
compiler() {
  environment "$1"
  dev_lock "$MYPYC" >"$TMP/lock"
  pinned "$1" || return 1
  site_packages "$2" >"$(site_packages "$1")/kindling-dependencies.pth"
  : >"$1/$MARK"
}

# compiled DEPENDENCIES: leaves the extension modules in $TMP/compiled, or says in $TMP/why why not.
compiled() {
  local dir old
  dir=$({ dev_lock "$MYPYC"; printf '%s\n' "$1"; } | sha256sum)
  dir=$COMPILERS/${dir:0:16}
  if ! can_compile; then
    echo "there is no C compiler with Python's headers: run 'apt-get install gcc libc6-dev python3-dev'" >"$TMP/why"
    return 1
  fi
  if [ ! -e "$dir/$MARK" ]; then compiler "$dir" "$1" || return 1; fi
  for old in "$COMPILERS"/*; do
    if [ "$old" != "$dir" ]; then rm -rf "$old"; fi
  done
  mkdir "$TMP/sources"
  sources "$TMP/sources"
  if ! quietly env -i PATH="$PATH" LC_ALL="$LC_ALL" "$dir/bin/python" -I "$HERE/compile.py" \
    "$TMP/sources" "$TMP/compiled" "$COMPILED"; then
    echo "mypyc or the C compiler fails on these sources: run 'make compiled' in their repository to see how" >"$TMP/why"
    return 1
  fi
}

can_compile() {
  local found
  found=$("$PYTHON" -I -c 'import sysconfig
print(sysconfig.get_config_var("CC").split()[0], sysconfig.get_path("include"))')
  "${found% *}" --version >/dev/null 2>&1 && [ -e "${found#* }/Python.h" ]
}

# sources DIR: a copy of what is built: building in the tree would leave files there, and the tree may
# be root's alone.
sources() {
  (cd "$REPO" && find agent -name __pycache__ -prune -o -type f -print0 | copy_to "$1")
  cp "$REPO/pyproject.toml" "$1/"
  chmod -R u+rwX,go+rX,go-w "$1"
}

# package DIR DEPENDENCIES FORM, whose name was made of the code before this copies it: a file changed
# meanwhile is installed the next time.
package() {
  local source=$TMP/source site file
  environment "$1" --without-pip
  site=$(site_packages "$1")
  site_packages "$2" >"$site/kindling-dependencies.pth"
  mkdir "$source"
  sources "$source"
  for file in README.md LICENSE; do
    if [ -e "$REPO/$file" ]; then cp "$REPO/$file" "$source/"; else : >"$source/$file"; fi
  done
  chmod -R u+rwX,go+rX,go-w "$source"
  quietly pip "$2" --python "$1/bin/python" install --no-deps --no-index --no-build-isolation "$source" ||
    die "the package does not build: see the lines above"
  if [ "$3" = compiled ]; then
    (cd "$TMP/compiled" && find . -type f -print0 | copy_to "$site")
    chmod -R go+rX,go-w "$site"
  else
    printf '%s: %s\n' "$3" "$(cat "$TMP/why")" >"$1/$PURE_NOTE"
  fi
  quietly tcc -nostdlib -static -o "$1/bin/kindling-init" "$REPO/init/kindling-init.c" ||
    die "the first process of instances does not build: run 'apt-get install tcc'"
  : >"$1/$CODE_MARK"
  : >"$1/$MARK"
}

site_packages() { "$1/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# turn_over DIR: makes it the agent that is installed.
turn_over() {
  touch "$1/$CODE_MARK"
  rm -rf "$VENV.new"
  ln -s "agents/${1##*/}" "$VENV.new"
  if [ -d "$VENV" ] && [ ! -L "$VENV" ]; then
    # Set-ups of earlier versions made a directory there, which no rename replaces by a link.
    exchange "$VENV.new" "$VENV"
    rm -rf "$VENV.new"
  else
    # At the first install there is no link, and nothing was before.
    readlink "$VENV" >"$AGENTS/.before" || true
    mv -T "$VENV.new" "$VENV"
  fi
}

# exchange PATH PATH: swaps two names in one step (renameat2(2), RENAME_EXCHANGE).
exchange() {
  "$PYTHON" -I -c 'import ctypes, os, sys
here, exchange = -100, 2
libc = ctypes.CDLL(None, use_errno=True)
if libc.renameat2(here, os.fsencode(sys.argv[1]), here, os.fsencode(sys.argv[2]), exchange):
    sys.exit(os.strerror(ctypes.get_errno()))' "$1" "$2"
}

# unused DIR…: those that no process was started from. Every process of the agent, and rootlesskit
# before them, has the interpreter's path in its arguments. These are any user's words: they can keep
# a directory that would go, and name none that would stay.
unused() {
  local dir read=0
  # cat fails for those that end meanwhile, and tells of all others. A process whose arguments lie in
  # memory that it serves itself can make the reader wait: nothing is known then, and all stays.
  timeout 20 cat /proc/[0-9]*/cmdline 2>/dev/null >"$TMP/cmdlines" || read=$?
  if [ "$read" -gt 1 ]; then return 0; fi
  tr '\0' '\n' <"$TMP/cmdlines" >"$TMP/arguments"
  for dir in "$@"; do
    if [ -d "$dir" ] && ! grep -qF "$dir/" "$TMP/arguments"; then printf '%s\n' "$dir"; fi
  done
}

# clean_up AGENT: removes what is neither installed, nor was before that, nor runs.
clean_up() {
  local old before
  before=$AGENTS/$(basename "$(cat "$AGENTS/.before" 2>/dev/null)")
  for old in $(unused "$AGENTS"/*); do
    if [ "$old" != "$1" ] && [ "$old" != "$before" ]; then rm -rf "$old"; fi
  done
  for old in $(unused "$DEPS"/*); do
    if ! grep -qsF "$old/" "$AGENTS"/*/lib/python*/site-packages/kindling-dependencies.pth; then rm -rf "$old"; fi
  done
}

# copy_to DIR: the files named on its input, NUL after each.
copy_to() { tar --null -T - -cf - | tar -C "$1" --no-same-owner -xf -; }

# agent_of FORM LOCK CODE: the directory of an agent, which the form is part of.
agent_of() {
  local id
  id=$(printf '%s\n' "$@" | sha256sum)
  printf '%s\n' "$AGENTS/${id:0:16}"
}

main() {
  local lock code deps agent form=compiled
  case ${1:-} in
    '') ;;
    --print) PRINT=1 ;;
    --help | -h) usage; exit 0 ;;
    *) printf "setup: unknown option '%s'; try setup/install.sh --help\n" "$1" >&2; exit 2 ;;
  esac
  trap 'on_error "$LINENO" "$BASH_COMMAND"' ERR
  step agent "remove $DEPS and run it again"
  [ -d "$REPO/agent" ] || die "no agent/ beside $HERE: run it from a clone of the repository"
  if [ "$PRINT" = 0 ]; then need_root setup/install.sh; alone; fi
  workspace
  trap 'rm -rf "$TMP"' EXIT
  lock=$(lock_hash)
  deps=$DEPS/${lock:0:16}
  code=$(code_hash)
  if [ -e "$deps/$MARK" ]; then
    note "agent's dependencies in place ($deps)"
  else
    act "install the dependencies of requirements.lock, by hash, into $deps" dependencies "$deps"
  fi
  if [ "${KINDLING_COMPILED:-1}" = 0 ]; then
    form=chosen
    echo 'as KINDLING_COMPILED=0 asked for' >"$TMP/why"
  elif [ ! -e "$(agent_of compiled "$lock" "$code")/$MARK" ] &&
    ! act "compile what a warm call touches, once for the same sources" compiled "$deps"; then
    form=failed
    warn "calls will take more CPU, for plain Python is installed: $(cat "$TMP/why")"
  fi
  agent=$(agent_of "$form" "$lock" "$code")
  if [ -e "$agent/$MARK" ] && [ "$(readlink -f "$VENV")" = "$agent" ]; then
    note 'agent in place'
  else
    if [ ! -e "$agent/$MARK" ]; then act "install the agent of $REPO into $agent" package "$agent" "$deps" "$form"; fi
    act "turn $VENV over to it" turn_over "$agent"
  fi
  if [ "$(readlink "$COMMAND" 2>/dev/null)" != "$VENV/bin/kindling" ]; then
    act "link $COMMAND" ln -sfn "$VENV/bin/kindling" "$COMMAND"
  fi
  if [ "$PRINT" = 0 ]; then clean_up "$agent"; fi
}

main "$@"

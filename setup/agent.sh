# shellcheck shell=bash
# How root deals with the agent that runs: what stands in /run/kindling is the user's, so it is read,
# and signals are sent, with the user's own power, and what is read is checked. Sourced, never run.
#
# Needs AGENT_USER and RUNDIR; as_root, where it is set, is what makes a command root's: sudo.

# as_agent COMMAND…: runs it as the agent's user, for five seconds at most (a file may be a pipe).
# In a session of its own, without root's terminal, messages or setup's lock: other processes of that
# user may trace this one and use whatever it has open.
as_agent() {
  # shellcheck disable=SC2154  # set, or not, by who sources this
  ${as_root:+"${as_root[@]}"} setsid --wait setpriv --reuid="$AGENT_USER" --regid="$AGENT_USER" --clear-groups -- \
    timeout 5 "$@" </dev/null 2>/dev/null 9>&-
}

# agent_alive: whether an agent holds the lock of RUNDIR; the kernel frees it with its holder.
agent_alive() {
  # shellcheck disable=SC2016  # expanded by the shell that is started
  as_agent sh -c '[ -f "$1" ] && ! flock -n -s "$1" true' sh "$RUNDIR/lock"
}

# agent_pid: the pid in the lock file, if it is one.
agent_pid() {
  local pid
  pid=$(as_agent head -c 20 "$RUNDIR/lock" | tr -d '\0') || return 1
  [[ $pid =~ ^[1-9][0-9]{0,9}$ ]] || return 1
  printf '%s\n' "$pid"
}

# signal_agent NAME: fails where there is no agent, or where the pid is of somebody else's process.
signal_agent() {
  local pid
  pid=$(agent_pid) || return 1
  # shellcheck disable=SC2016  # expanded by the shell that is started
  as_agent sh -c 'kill -s "$1" "$2"' sh "$1" "$pid"
}

# plain: what an agent or a function wrote, without the characters that steer a terminal.
plain() { tr -d '\000-\010\013-\037\177'; }

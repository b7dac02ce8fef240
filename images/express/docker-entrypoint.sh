#!/bin/sh
# Like the official image's: what is no command is a script for node.
set -e

if [ "${1#-}" != "$1" ] || [ -z "$(command -v "$1")" ]; then
  set -- node "$@"
fi
exec "$@"

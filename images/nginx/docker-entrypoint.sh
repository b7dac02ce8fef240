#!/bin/sh
# Like the official image's: what stands in /docker-entrypoint.d is run before the server, in order.
set -e

if [ "$1" = nginx ]; then
  find /docker-entrypoint.d/ -follow -type f -print | sort -V | while read -r part; do
    if [ -x "$part" ]; then
      echo "$0: Launching $part"
      "$part"
    fi
  done
  echo "$0: Configuration complete; ready for start up"
fi

exec "$@"

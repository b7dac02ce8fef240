#!/usr/bin/env bash
# Pin every dependency with hashes: requirements.lock for the agent, requirements-dev.lock with the
# development tools, and those of the images of other people's software. The package indexes are
# whatever pip and npm are configured with; they are not written down.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-/usr/bin/python3}" -m venv "$tools"
"$tools/bin/pip" install -q --disable-pip-version-check pip-tools
compile=("$tools/bin/pip-compile" -q --upgrade --generate-hashes --strip-extras --allow-unsafe
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host)
CUSTOM_COMPILE_COMMAND="make lock" "${compile[@]}" -o requirements.lock pyproject.toml
CUSTOM_COMPILE_COMMAND="make lock" "${compile[@]}" --extra dev -o requirements-dev.lock pyproject.toml
for name in flask fastapi; do
  CUSTOM_COMPILE_COMMAND="make lock" "${compile[@]}" -o "images/$name/requirements.lock" "images/$name/requirements.in"
done
"${PYTHON:-/usr/bin/python3}" images/software.py --lock

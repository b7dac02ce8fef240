#!/usr/bin/env bash
# Pin every dependency with hashes: requirements.lock for the agent, requirements-dev.lock with the
# development tools. The package index is whatever pip is configured with; it is not written down.
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

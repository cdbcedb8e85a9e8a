#!/usr/bin/env bash
# Runs the test suite: scripts/test.sh [--stack default|addons] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

stack=default
if [ "${1:-}" = --stack ]; then
  stack=${2:?"--stack needs a name: default or addons"}
  shift 2
fi
use_stack "$stack"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"

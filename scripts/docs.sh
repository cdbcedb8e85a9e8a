#!/usr/bin/env bash
# Builds the documentation site into build/site; a broken link or any other warning is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

use_stack docs
rm -rf build/site
"$PYTHON" -m sphinx --builder html --fail-on-warning --keep-going --quiet \
  --doctree-dir build/doctrees docs build/site
echo "build/site/index.html"

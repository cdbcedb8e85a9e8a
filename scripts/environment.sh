# Sourced by demo.sh, test.sh and docs.sh: makes the virtual environment of a stack when it is missing
# or out of date, and sets PYTHON to its interpreter.
#
#   use_stack default|addons|docs

use_stack() {
  local stack=$1 root venv packages wanted stamp
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  case "$stack" in
    default) venv="$root/.venv" versions="3.11 3.12 3.13" packages=(--editable "$root[test]") ;;
    addons) venv="$root/.venv-addons" versions="3.11" packages=(--editable "$root[test,addons]") ;;
    # Without the package, whose source is only read: no TensorFlow.
    docs) venv="$root/.venv-docs" versions="3.11 3.12 3.13" packages=(--requirement "$root/constraints/docs.txt") ;;
    *) echo "error: unknown stack '$stack'; expected default, addons or docs" >&2; return 2 ;;
  esac
  PYTHON="$venv/bin/python"
  wanted=$(cat "$root/setup.py" "$root/sepc_tf/__init__.py" "$root/constraints/$stack.txt" | cksum)
  stamp="$venv/installed.cksum"
  if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  local candidate base=""
  for candidate in ${SEPC_TF_PYTHON:-python3 python3.11 python3.12 python3.13}; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    case " $versions " in
      *" $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])') "*) base=$candidate; break ;;
    esac
  done
  if [ -z "$base" ]; then
    echo "error: the $stack stack needs Python $versions; found $(python3 --version 2>&1 || echo none)." >&2
    echo "Install one of these versions, or name it: SEPC_TF_PYTHON=/path/to/python3.11" >&2
    return 1
  fi
  if [ ! -x "$PYTHON" ]; then
    echo "Creating $venv with $("$base" --version)"
    "$base" -m venv "$venv" || return 1
  fi
  echo "Installing the $stack stack into $venv (some minutes the first time)"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints/$stack.txt" "${packages[@]}" || {
    echo "error: pip could not install the $stack stack; its messages are above" >&2
    return 1
  }
  printf '%s\n' "$wanted" >"$stamp"
}

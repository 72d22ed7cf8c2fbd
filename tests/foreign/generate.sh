#!/bin/sh
# generate.sh ENCODER GENERATOR PROMPT FILE [OPTION OF `buf curl`]...
# ENCODER and GENERATOR are URLs: http://127.0.0.1:7501, or https://gpu-box:7501 with TLS.
set -eu
encoder=$1 generator=$2 prompt=$3 file=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

call() { # call URL METHOD OPTION...: the request comes from standard input
    url=$1/zrelay.v1.$2
    shift 2
    buf curl --protocol grpc --data @- "$@" "$url"
}

limit=$(echo '{}' | call "$generator" GeneratorService/GetInfo "$@" | jq .limits.textLimit)

jq -n --arg text "$prompt" --argjson limit "$limit" '{prompts: [{$text}], options: {textLimit: $limit}}' |
    call "$encoder" EncoderService/EncodePrompts "$@" >"$work/encoded"

# A 64-bit number is a string in JSON.
jq '{spec: {prompt: {promptEmbeds: .results[0].promptEmbeds}, sampling: {seed: "18446744073709551615"}}}' \
    "$work/encoded" >"$work/request"

call "$generator" GeneratorService/Generate "$@" <"$work/request" | tee "$work/events" |
    jq -r --unbuffered '.event.progress | select(.) | "\(.stage // "queued"): \(.completed // 0) of \(.total // 0)"'

jq -r '.event.image.data | select(.)' "$work/events" | base64 -d >"$file"
test -s "$file"
jq -r '.event.image | select(.) | "seed \(.seed), \(.width) x \(.height)"' "$work/events"

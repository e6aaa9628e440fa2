#!/usr/bin/env bash
# Compiles a model into the app, with its recipe and its labels.
#
#   add_model.sh [--calib DATA] [--gpu TARGET] MODEL.onnx RECIPE.toml LABELS.txt
#
# It is compiled for phones of 64 and 32 bits and for the emulator of a PC. With --calib the model is quantised to
# 8 bits by these inputs; --gpu compiles it for a GPU target, too, for the switch in the app (edgec targets lists them).
set -euo pipefail

app=$(cd "$(dirname "$0")" && pwd)/app/src/main
calib='' gpu=''
while [[ ${1-} == --* ]]; do
  case $1 in
    --calib) calib=$2; shift ;;
    --gpu) gpu=$2; shift ;;
    *) echo "add_model.sh: there is no flag $1" >&2; exit 2 ;;
  esac
  shift
done
if [[ $# -ne 3 ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
flags=()
[[ -n $calib ]] && flags+=(--quantize int8 --calib "$calib")
if [[ -d $calib ]]; then flags+=(--preprocess "$2"); fi
compile() { # compile MODEL ABI NAME TARGET FLAGS
  mkdir -p "$folder/$2"
  "${EDGEC:-edgec}" compile "$1" --target "$4" "${@:5}" -o "$folder/$2/libmodel_$3.so"
}
compile "$1" arm64-v8a cpu android-arm64 "${flags[@]}"
compile "$1" armeabi-v7a cpu android-armv7 "${flags[@]}"
compile "$1" x86_64 cpu android-x86_64 "${flags[@]}"
if [[ -n $gpu ]]; then compile "$1" arm64-v8a gpu "$gpu"; fi

mkdir -p "$app/assets"
for abi in arm64-v8a armeabi-v7a x86_64; do
  mkdir -p "$app/jniLibs/$abi"
  rm -f "$app/jniLibs/$abi"/libmodel_*.so
  cp "$folder/$abi"/libmodel_*.so "$app/jniLibs/$abi/"
done
cp "$2" "$app/assets/recipe.toml"
cp "$3" "$app/assets/labels.txt"

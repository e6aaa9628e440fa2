#!/usr/bin/env bash
# Compiles a model into the app, with its recipe and its labels.
#
#   add_model.sh [--calib DATA] [--gpu TARGET] MODEL.onnx RECIPE.toml LABELS.txt
#
# With --calib the model is quantised to 8 bits by these inputs; --gpu compiles it for a GPU target, too, for the
# switch in the app (edgec targets lists them).
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
"${EDGEC:-edgec}" compile "$1" --target android-arm64 "${flags[@]}" -o "$folder/libmodel_cpu.so"
if [[ -n $gpu ]]; then "${EDGEC:-edgec}" compile "$1" --target "$gpu" -o "$folder/libmodel_gpu.so"; fi

mkdir -p "$app/jniLibs/arm64-v8a" "$app/assets"
rm -f "$app"/jniLibs/arm64-v8a/libmodel_*.so
cp "$folder"/libmodel_*.so "$app/jniLibs/arm64-v8a/"
cp "$2" "$app/assets/recipe.toml"
cp "$3" "$app/assets/labels.txt"

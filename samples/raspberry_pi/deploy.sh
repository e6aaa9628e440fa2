#!/usr/bin/env bash
# Compiles a model and this sample's C program for a board, copies both there, tries them, and starts the service.
#
#   deploy.sh [--target rpi4] [--calib DATA] [--detect] [--no-service] [USER@]HOST MODEL.onnx RECIPE.toml LABELS.txt [PICTURE]
#
# With --calib the model is quantised to 8 bits by these inputs. PICTURE (.ppm, .pgm) is looked at on the board first.
# SSH holds the command if it takes more than "ssh", e.g. SSH="ssh -p 2222"; SIZE the camera's frames (640x480).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=rpi4 calib='' detect='' service=yes
while [[ ${1-} == --* ]]; do
  case $1 in
    --target) target=$2; shift ;;
    --calib) calib=$2; shift ;;
    --detect) detect=--detect ;;
    --no-service) service='' ;;
    *) echo "deploy.sh: there is no flag $1" >&2; exit 2 ;;
  esac
  shift
done
if [[ $# -lt 4 ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
host=$1 model=$2 recipe=$3 labels=$4 picture=${5-}
size=${SIZE:-640x480}
read -ra ssh <<<"${SSH:-ssh}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/send"

flags=()
[[ -n $calib ]] && flags+=(--quantize int8 --calib "$calib")
if [[ -d $calib ]]; then flags+=(--preprocess "$recipe"); fi
"${EDGEC:-edgec}" compile "$model" --target "$target" "${flags[@]}" -o "$folder/model.so"

case $target in
  host) cross=() ;;
  rpi2) cross=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=arm -DCMAKE_C_COMPILER=arm-linux-gnueabihf-gcc) ;;
  *) cross=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc) ;;
esac
# the board's own libjpeg is not here to link with
cmake -S "$here/c" -B "$folder/build" "${cross[@]}" -DCMAKE_DISABLE_FIND_PACKAGE_JPEG=ON >"$folder/log" 2>&1 &&
  cmake --build "$folder/build" >>"$folder/log" 2>&1 || { tail -20 "$folder/log" >&2; exit 1; }

cp "$folder/model.so" "$folder/build/edgert-vision" "$here/edgert-vision.service" "$folder/send/"
cp "$recipe" "$folder/send/recipe.toml"
cp "$labels" "$folder/send/labels.txt"
cat >"$folder/send/vision.env" <<END
CAMERA=rpicam-vid -t 0 -n --codec yuv420 --width ${size%x*} --height ${size#*x} -o -
VISION=model.so --preprocess recipe.toml --labels labels.txt $detect --threads 4 --yuv420 $size
END
[[ -n $picture ]] && cp "$picture" "$folder/send/try.${picture##*.}"

tar -C "$folder/send" -cf - . | "${ssh[@]}" "$host" 'mkdir -p ~/edgert-vision && tar -C ~/edgert-vision -xf -'
if [[ -n $picture ]]; then
  "${ssh[@]}" "$host" "cd ~/edgert-vision && ./edgert-vision model.so --preprocess recipe.toml --labels labels.txt \
    $detect try.${picture##*.}"
fi
[[ -z $service ]] && exit 0
"${ssh[@]}" "$host" 'mkdir -p ~/.config/systemd/user && mv ~/edgert-vision/edgert-vision.service ~/.config/systemd/user/ &&
  systemctl --user daemon-reload && systemctl --user enable edgert-vision && systemctl --user restart edgert-vision'
echo "The service runs on $host; see what it says with: ${SSH:-ssh} $host journalctl --user -fu edgert-vision"

#!/bin/bash
# A training on one host by hand, as people write it: files there by rsync, tmux, look every second, files back.
#   plain.sh <ssh config> <host> <python on the host> <folder with the files> <folder for the adapter>
# The folder holds data/, run/axolotl.yml and tiny_model.py, with the paths of /workspace/plain in axolotl.yml.
set -eu
config=$1 host=$2 python=$3 files=$4 back=$5
there=/workspace/plain
model=$(sed -n 's/^base_model: //p' "$files/run/axolotl.yml")
on() { ssh -n -F "$config" "$host" "$@"; }

on "mkdir -p $there"
rsync -a -e "ssh -F $config" "$files/" "$host:$there/"
on "mkdir -p $(dirname "$model") && $python $there/tiny_model.py $model $there/data/*.jsonl"
on "tmux new-session -d -s plain 'cd $there/run && $python -m axolotl.cli.train axolotl.yml >train.log 2>&1; echo \$? >ended'"
until on "test -e $there/run/ended"; do sleep 1; done
test "$(on "cat $there/run/ended")" = 0
mkdir -p "$back"
rsync -a -e "ssh -F $config" --exclude 'checkpoint-*' "$host:$there/run/" "$back/"
on "cd $there/run/output && sha256sum adapter_model.safetensors" | (cd "$back/output" && sha256sum --check --quiet)

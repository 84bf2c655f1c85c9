#!/usr/bin/env bash
# Everything that is claimed about a GPU, in one call of less than 10 minutes: bash benchmarks/gpu.sh [--rehearse]
#
# Writes $OUT/gpu.json and, unless --only is given, $OUT/population_gpu.json (without OUT in benchmarks/results). Needs
# no network, no pip and no installed algornn: the packages that are missing there (omegaconf, jsonargparse, fla with
# einops) may come by PYTHONPATH, and the commit of a copy without its history by COMMIT.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# What pyproject.toml says: `framework` is algornn, and the other rooms are packages in it.
mkdir "$site/algornn"
ln -s "$root"/framework/* "$root"/probes "$root"/datamodules "$root"/triton_kernels "$site/algornn/"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
mkdir "$site/algornn-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: algornn\nVersion: %s\n' "$version" >"$site/algornn-$version.dist-info/METADATA"

export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-$root/benchmarks/results}
"${PYTHON:-python3}" "$root/benchmarks/gpu.py" --out "$out/gpu.json" "$@"

# Agents of MetaGenRL, stacked against one by one: 20 of the published size.
case " $* " in
*" --only"*) exit ;;
*" --rehearse "*) set -- --agents 2 --width 8 --size 4 2 --rounds 1 ;;
*) set -- --device cuda --agents 20 --width 350 --size 100 20 ;;
esac
"${PYTHON:-python3}" "$root/benchmarks/population.py" --out "$out/population_gpu.json" "$@"

#!/bin/sh
# Serve the profile fp4 on port 8000, on the cards of -g (0,1; without: all). Other flags are those of `fluxline serve`.
if [ "$1" = -g ]; then export CUDA_VISIBLE_DEVICES="$2"; shift 2; fi
exec "${FLUXLINE:-fluxline}" serve --config "$(dirname "$0")/deploy/fluxline.toml" --profile fp4 --listen "" --port 8000 "$@"

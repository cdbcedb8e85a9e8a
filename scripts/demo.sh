#!/usr/bin/env bash
# The whole job on data it makes itself: train, evaluate, predict, export.
#   scripts/demo.sh [key=value ...]     e.g. scripts/demo.sh train.epochs=1
# RUN_DIR (default runs/demo) holds the results; started again, it continues there.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

use_stack default
run_dir=${RUN_DIR:-runs/demo}

sepc_tf() { "$PYTHON" -m sepc_tf "$@"; }

sepc_tf make-demo-data demo_data
sepc_tf train --config demo_sepc_lite --run-dir "$run_dir" "$@"
sepc_tf evaluate --run-dir "$run_dir" --checkpoint best
sepc_tf predict --run-dir "$run_dir" --out "$run_dir/predictions" --one-per-object --limit 16 demo_data/val
sepc_tf export --run-dir "$run_dir" --out "$run_dir/saved_model"

"$PYTHON" - "$run_dir" <<'SUMMARY'
import json, sys
run_dir = sys.argv[1]
metrics = json.load(open(f"{run_dir}/evaluation/metrics.json"))
print(f"""
AP {metrics['AP']:.3f}  AP50 {metrics['AP50']:.3f}  AP75 {metrics['AP75']:.3f}
metrics and detections  {run_dir}/evaluation
pictures                {run_dir}/predictions
SavedModel              {run_dir}/saved_model
TensorBoard             .venv/bin/tensorboard --logdir {run_dir}/tensorboard""")
SUMMARY

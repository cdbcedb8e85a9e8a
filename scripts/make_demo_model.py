"""Makes the detector that comes with the package from a finished run of the demo.

    python scripts/make_demo_model.py runs/demo

writes the run directory sepc_tf/demo_model, whose weights are float16, evaluates it on the run's
validation data, and writes what came out into docs/demo_model.md and its predictions for the first
images to docs/images/demo_predictions.jpg. Commit all three.
"""

import argparse
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from sepc_tf.config import config_to_yaml
from sepc_tf.data.sources import evaluation_pipeline, load_split
from sepc_tf.evaluation.run import evaluate_run
from sepc_tf.files import read_json, write_json, write_text
from sepc_tf.predict import Predictor
from sepc_tf.runs import PACKAGED_RUNS, checkpoint_path, load_run, read_categories, run_config
from sepc_tf.training.checkpoints import read_checkpoint, write_checkpoint
from sepc_tf.visualization import one_per_object, prediction_grid

CARD = Path(__file__).parents[1] / "docs/demo_model.md"
PICTURE = Path(__file__).parents[1] / "docs/images/demo_predictions.jpg"
MIN_SCORE = 0.3  # of what is drawn
NUMBERS = re.compile(r"(<!-- numbers -->\n).*(<!-- end of numbers -->)", re.DOTALL)
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def make_demo_model(
    run_dir: Path, model_dir: Path, card: Path, overrides: list[str] | None = None
) -> None:
    """Writes the run directory `model_dir` and the numbers of the model card `card`.

    Args:
        run_dir: the finished run.
        model_dir: what is made; what was there is removed.
        card: the Markdown file with the two comments between which the numbers go.
        overrides: `"dotted.key=value"` strings for the evaluation, as where the data is.
    """
    environment = read_json(run_dir / "environment.json")
    environment["command"][0] = "sepc-tf"
    arrays, meta = read_checkpoint(checkpoint_path(run_dir))
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}

    shutil.rmtree(model_dir, ignore_errors=True)
    (model_dir / "checkpoints").mkdir(parents=True)
    write_checkpoint(model_dir / "checkpoints/best.npz", halves, {"step": meta["step"]})
    write_text(model_dir / "config.yaml", config_to_yaml(run_config(run_dir)))
    write_json(model_dir / "categories.json", read_categories(run_dir))
    write_json(model_dir / "environment.json", environment)

    run = load_run(model_dir, overrides=overrides or [])
    dataset = load_split(run.config.data, "val")
    evaluate_run(run, dataset, evaluation_pipeline(dataset, run.config), run_dir / "demo_model")
    shutil.copy(run_dir / "demo_model/metrics.json", model_dir / "metrics.json")

    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items() if v)
    size = (model_dir / "checkpoints/best.npz").stat().st_size
    lines = [
        f"| % | {' | '.join(SHOWN)} |",
        f"| --- |{' --- |' * len(SHOWN)}",
        f"| as trained, float32 | {_row(meta['metrics'])} |",
        f"| as shipped, float16 | {_row(read_json(model_dir / 'metrics.json'))} |",
        "",
        f"- made by `{' '.join(environment['command'])}`, seed {environment['seed']},",
        f"  {meta['step']} steps on {environment['replicas']} replicas in {meta['seconds']:.0f} s",
        f"- revision {environment['git_revision']}",
        f"- Python {environment['python']}, {versions}",
        f"- {sum(array.size for array in arrays.values()):,} numbers, {size / 1e6:.2f} MB",
    ]
    text = card.read_text(encoding="utf-8")
    write_text(card, NUMBERS.sub(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], text))


def draw_predictions(run_dir: Path, overrides: list[str], picture: Path) -> None:
    """Draws the best of the boxes of every object in the first six validation images.

    Args:
        run_dir, overrides: as in `make_demo_model`.
        picture: the JPEG file.
    """
    run = load_run(run_dir, overrides=overrides)
    predictor = Predictor(run)
    rows = []
    for record in load_split(run.config.data, "val").images[:6]:
        image = record.read()
        found = predictor(image)
        shown = (found.scores >= MIN_SCORE) & one_per_object(found.boxes, found.scores)
        prediction = (found.boxes[shown], found.classes[shown], found.scores[shown])
        rows.append((image, prediction, (record.boxes, record.labels)))
    names = [category["name"] for category in run.categories]
    columns = [prediction_grid(rows[:3], names), prediction_grid(rows[3:], names)]
    Image.fromarray(np.hstack(columns)).save(picture, quality=85)


def _row(metrics):
    return " | ".join(f"{100 * metrics[name]:.1f}" for name in SHOWN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.directory=DIR")
    arguments = parser.parse_args()
    make_demo_model(arguments.run_dir, PACKAGED_RUNS["demo"], CARD, arguments.overrides)
    draw_predictions(PACKAGED_RUNS["demo"], arguments.overrides, PICTURE)
    print(f"{PACKAGED_RUNS['demo']}, {CARD} and {PICTURE}")

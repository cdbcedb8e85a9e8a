"""# Fine-tune on your data

A detector that has learnt something else is a better start than random weights. Here the start is
the digit detector that comes with the package, and the data is generated, so that the guide runs as
it stands; put your own files and a larger model in their places.
"""

import json
from pathlib import Path

import sepc_tf

# ## The data
#
# A COCO file and a folder of images for each split. Class names and their number come from the
# file. (YOLO and Pascal VOC folders are read as they are: `data.source=yolo`, `data.source=voc`.)
# These are digits again, of which only the even ones are annotated, as two classes.

sepc_tf.make_demo_dataset("my_data", train_images=16, val_images=4)
NAMES = {1: "round", 2: "angular"}
CLASS_OF_DIGIT = {0: 1, 6: 1, 8: 1, 2: 2, 4: 2}
for split in ("train", "val"):
    file = Path(f"my_data/annotations/instances_{split}.json")
    content = json.loads(file.read_text())
    digit_of = {c["id"]: number for number, c in enumerate(content["categories"])}
    content["annotations"] = [
        {**annotation, "category_id": CLASS_OF_DIGIT[digit_of[annotation["category_id"]]]}
        for annotation in content["annotations"]
        if digit_of[annotation["category_id"]] in CLASS_OF_DIGIT
    ]
    content["categories"] = [{"id": id, "name": name} for id, name in NAMES.items()]
    Path(f"my_data/{split}.json").write_text(json.dumps(content))

# What is wrong with a data set is better known before the training than after it.

report = sepc_tf.check_dataset("my_data/train.json", "my_data/train")
assert not report.errors

# ## The config
#
# The config of the model to start from, with other data, its backbone's weights, and a short
# schedule. `detector.backbone.weights` takes a checkpoint of ours, of torchvision or of
# mmdetection; for photographs take `retinanet_r50_sepc_lite_1x` and torchvision's ResNet-50.

config = sepc_tf.load_config(
    "demo_sepc_lite",
    [
        "data.source=coco",
        "data.train={annotations: my_data/train.json, images: my_data/train}",
        "data.val={annotations: my_data/val.json, images: my_data/val}",
        f"detector.backbone.weights={sepc_tf.packaged_run('demo') / 'checkpoints/best.npz'}",
        *("data.short_side=[128]", "data.test_short_side=128", "data.long_side=128"),
        "train.epochs=1",
        "train.batch_size=4",
        "train.optimizer.learning_rate=0.005",
        "train.schedule={type: cosine, warmup_steps: 2}",
        "train.cpu_replicas=1",
    ],
)

# ## Training and what it reached
#
# Started again, `train` goes on where it was. One epoch of sixteen images learns next to nothing,
# it shows the way. `runs/mine` then holds weights, config and the metrics of every epoch.

sepc_tf.train(config, "runs/mine")

last = json.loads(Path("runs/mine/history.json").read_text())[-1]
print(f"AP {100 * last['AP']:.1f}, AP50 {100 * last['AP50']:.1f}")

# The same on the command line:
#
# ```bash
# sepc-tf check-dataset my_data/train.json my_data/train
# sepc-tf train --config mine.yaml --run-dir runs/mine
# sepc-tf evaluate --run-dir runs/mine
# ```

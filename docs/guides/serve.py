"""# Serve

From a trained run to a SavedModel that needs only TensorFlow, and back to the same boxes. The run
is the digit detector that comes with the package.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

import sepc_tf

data = sepc_tf.make_demo_dataset("digits", train_images=0, val_images=2)
file = data / "val/000001.jpg"

# ## Export
#
# `sepc-tf export --run-dir RUN --out served` does the same. The folder holds the graph, the weights
# and the class names.

run = sepc_tf.load_run(sepc_tf.packaged_run("demo"))
sepc_tf.export(run, "served")

# ## Load and call
#
# This is all that a server needs, no `sepc_tf`: encoded images of any sizes go in.

model = tf.saved_model.load("served")
content = tf.constant([file.read_bytes()])
result = model.signatures["serving_bytes"](image_bytes=content)

# ## Decode the result
#
# Of every image `num_detections` entries count, best first; what follows is padding. Boxes are
# `x1, y1, x2, y2` in pixels of the file's own image, classes are indices into `categories.json`.

categories = json.loads(Path("served/categories.json").read_text())
count = int(result["num_detections"][0])
boxes = result["boxes"][0, :count].numpy()
scores = result["scores"][0, :count].numpy()
classes = result["classes"][0, :count].numpy()
for box, score, index in list(zip(boxes, scores, classes))[:3]:
    print(categories[index]["name"], f"{score:.2f}", np.round(box, 1))

# ## Pixels instead of files
#
# `serving_default` takes decoded images, equally sized ones in a batch. TensorFlow's default JPEG
# decoder is a fast one with slightly other pixels; the accurate one gives the same detections.

pixels = tf.io.decode_jpeg(file.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE")
same = model.signatures["serving_default"](images=pixels[None])
np.testing.assert_allclose(same["boxes"], result["boxes"], atol=1e-3)

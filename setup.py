import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "sepc_tf/__init__.py").read_text(encoding="utf-8")

setup(
    name="sepc-tf",
    version=re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1],
    description="Scale-Equalizing Pyramid Convolution (CVPR 2020) detectors for TensorFlow 2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="SEPC-TF developers",
    license="MIT",
    keywords="object detection, feature pyramid, RetinaNet, SEPC, deformable convolution, Keras",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["sepc_tf", "sepc_tf.*"]), "sepc_tf.configs"],
    package_dir={"sepc_tf.configs": "configs"},
    package_data={
        "sepc_tf": [
            "py.typed",
            "ops/native/*.cc",
            "ops/native/*.h",
            "demo_model/*",
            "demo_model/checkpoints/*.npz",
        ],
        "sepc_tf.configs": ["*.yaml", "_base_/*.yaml", "experiments/*.yaml"],
    },
    entry_points={"console_scripts": ["sepc-tf = sepc_tf.cli:main"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "tensorflow>=2.15,<2.22",
        "keras>=2.15,<3.16",
        "keras-cv==0.9.0",
        "tensorflow-datasets>=4.9.4",
        "importlib_resources",
        "tensorboard",
        "pycocotools",
        "numpy",
        "opencv-python-headless>=4.9",
        "omegaconf>=2.4",
        "pyyaml",
        "pillow>=10.1",
        "matplotlib",
        "rich>=14.1",
        "safetensors>=0.5",
        "scikit-learn",
    ],
    extras_require={
        "addons": [
            "tensorflow>=2.15,<2.16",
            "tensorflow-addons>=0.23,<0.24",
            "tensorflow-metadata<1.18",
        ],
        "analysis": ["hotcoco>=1.3,<2"],
        "convert": ["torch>=2.6"],
        "docs": ["sphinx>=9,<10", "myst-parser>=5.2,<6", "furo>=2025.12"],
        "kerashub": ["keras-hub==0.29.1"],
        "litert": ["ai-edge-litert>=2.3,<3"],
        "onnx": ["onnx>=1.23,<2", "onnxruntime>=1.32,<2"],
        "openvino": ["openvino>=2026.4,<2027", "onnx>=1.23,<2", "onnxruntime>=1.32,<2"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "hotcoco>=1.3,<2"],
    },
)

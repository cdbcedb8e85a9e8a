from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="sepc-tf",
    version="0.1.0",
    description="Scale-Equalizing Pyramid Convolution (CVPR 2020) detectors for TensorFlow 2",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["sepc_tf", "sepc_tf.*"]),
    package_data={"sepc_tf": ["ops/native/*.cc", "ops/native/*.h"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "tensorflow>=2.15,<2.22",
        "keras-cv==0.9.0",
        "tensorflow-datasets>=4.9.4",
        "importlib_resources",
        "tensorboard",
        "pycocotools",
        "numpy",
        "omegaconf>=2.4",
        "pyyaml",
        "pillow",
        "matplotlib",
        "rich",
        "safetensors>=0.5",
        "scikit-learn",
    ],
    extras_require={
        "addons": [
            "tensorflow>=2.15,<2.16",
            "tensorflow-addons>=0.23,<0.24",
            "tensorflow-metadata<1.18",
        ],
        "convert": ["torch>=2.6"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff"],
    },
)

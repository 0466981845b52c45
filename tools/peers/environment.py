"""The environment that the peers run in: of their own, since what they ask for is not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PINNED = ["bergson==2.5.1", "kronfluence==1.0.1", "dattri==0.3.0"]  # without what they ask for
NEEDS = [
    "accelerate",
    "datasets",
    "jinja2",
    "jaxtyping>=0.3.3",
    "ml_dtypes",
    "natsort",
    "numpy",
    "scipy",
    "peft>=0.17",
    "petname",
    "pyarrow",
    "pyyaml",
    "simple-parsing",
    "torchopt",
    "transformers>=5",
    "bitsandbytes",
    "huggingface-hub>=1.13",
    "psutil",
    "faiss-cpu",
    "torch",
    "einconv",
    "einops",
    "opt-einsum",
]


def environment(directory: Path) -> Path:
    """Returns the folder of the peers' commands; installs what is not there yet."""
    commands, installed = directory / "bin", directory / "installed.txt"
    wanted = "\n".join([*PINNED, *NEEDS])
    if not installed.exists() or installed.read_text() != wanted:
        pip = [str(commands / "python"), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS)]
        for command in (
            [sys.executable, "-m", "venv", str(directory)],
            [*pip, *NEEDS],
            [*pip, "--no-deps", *PINNED],
        ):
            subprocess.run(command, check=True)
        installed.write_text(wanted)
    return commands

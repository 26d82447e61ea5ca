"""What all tests share: one thread per process, no network, no credentials of the person who runs them, and where optional data lies."""

import os
from pathlib import Path

import pytest

# Before torch, Ray or a tokenizer is imported. Tests are small: more threads only wait for each other.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "AWS_EC2_METADATA_DISABLED": "true"}
for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL",
                 "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "RAY_ADDRESS"):
    os.environ.pop(variable, None)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("no_proxy")]))

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.fixtures_ray", "tests.fixtures_results", "tests.fixtures_s3"]


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """torch reads OMP_NUM_THREADS when it is loaded; this also holds where something loaded it earlier."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real photos with masks and golden files, which are not part of the repository: $PIXELLM_SHARED, else `../shared`."""
    folder = Path(os.environ.get("PIXELLM_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}; set PIXELLM_SHARED to the folder that holds data/ and golden/")
    return folder

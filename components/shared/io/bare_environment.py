"""The environment of a process that runs code stored with a registered model: what computing needs, and no secret."""

import os

# Variables by name. Everything else is left out, so that a secret needs no rule of its own: keys of clouds, MLflow's
# login, tokens, proxies with passwords. PYTHON... is left out too, as `python -I` ignores it.
_NAMES = {
    "PATH", "LD_LIBRARY_PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CACHE_HOME", "LANG", "LANGUAGE", "TZ",
    "HF_HOME", "TOKENIZERS_PARALLELISM", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
}  # fmt: skip
# Variables by the beginning of their name: settings of the libraries that compute.
_PREFIXES = (
    "LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "CUBLAS_", "CUDNN_", "NCCL_", "TORCH_", "TORCHINDUCTOR_",
    "PYTORCH_", "TRITON_", "HIP_", "ROCR_",
)  # fmt: skip
_FIXED = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


def bare_environment() -> dict[str, str]:
    """Returns the variables of this process that computing needs, and some that keep libraries off the network."""
    kept = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return kept | _FIXED

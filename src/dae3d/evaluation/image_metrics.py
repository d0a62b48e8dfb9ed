"""How near an image is to the clean one: the measures, by the names that tables and files have for them.

To add one, write its function and give it a line in `IMAGE_METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

# Pages need the names alone, and do without PyTorch.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images, and the clean ones that they are compared with, sample by sample.

    Attributes:
        image: (B, 1, D, H, W) float32.
        clean: the same.
        lowest: (B,) the least intensity of each clean sample.
        span: (B,) its data range, maximum minus minimum; 1 where it is constant.
    """

    image: "Tensor"
    clean: "Tensor"
    lowest: "Tensor"
    span: "Tensor"


@dataclass(frozen=True)
class ImageMetric:
    """A measure.

    Attributes:
        title: what people call it.
        compute: of every sample, (B,) float32.
        unit: of its values.
        decimals: that are shown.
        validated: whether the higher value is the better one, and validation records it.
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
    """Mean absolute error in the unit of the images."""
    return (images.image - images.clean).abs().flatten(1).mean(dim=1)


def psnr(images: Images) -> "Tensor":
    """Peak signal-to-noise ratio in dB, infinite where the two are identical."""
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
    """Names of those that validation records and pages compare."""
    return tuple(name for name, metric in IMAGE_METRICS.items() if metric.validated)

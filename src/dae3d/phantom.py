"""A CT-like phantom: a torso of ellipsoids in Hounsfield units, as a second modality for the demo.

It is not patient data, and is labelled "ct-phantom" everywhere.
"""

from pathlib import Path

import nibabel
import numpy as np

from dae3d.files import whole_file

SHAPE = (144, 112, 128)
SPACING = 2.5  # mm


def write_phantom(path: Path, seed: int) -> None:
    """Write one phantom as NIfTI: int16 HU, 144 x 112 x 128 voxels of 2.5 mm; the seed varies the anatomy."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    with whole_file(path) as temporary:
        nibabel.Nifti1Image(phantom(seed), affine).to_filename(temporary)


def phantom(seed: int) -> np.ndarray:
    """A torso in HU, (144, 112, 128) int16: fat, muscle, lungs with vessels, heart, liver, spine and ribs."""
    random = np.random.default_rng(seed)
    size = 1 + 0.08 * random.standard_normal(3)
    grid = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in SHAPE), indexing="ij")
    x, y, z = (axis / scale for axis, scale in zip(grid, size, strict=True))

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        shift = 0.02 * random.standard_normal(3)
        terms = [((a - c - s) / r) ** 2 for a, c, s, r in zip((x, y, z), centre, shift, radii, strict=True)]
        return terms[0] + terms[1] + terms[2] < 1

    body = np.full(SHAPE, -1000.0, np.float32)
    torso = ellipsoid((0, 0, 0), (0.86, 0.8, 1.6))
    muscle = ellipsoid((0, 0, 0), (0.78, 0.7, 1.5))
    body[torso] = -100
    body[muscle] = 50
    lungs = ellipsoid((-0.36, 0, 0.3), (0.3, 0.5, 0.75)) | ellipsoid((0.36, 0, 0.3), (0.3, 0.5, 0.75))
    body[lungs] = -850
    for _ in range(60):
        side = random.choice((-1, 1))
        centre = (side * random.uniform(0.15, 0.55), random.uniform(-0.4, 0.4), random.uniform(-0.3, 0.9))
        radii = (random.uniform(0.01, 0.03), random.uniform(0.01, 0.03), random.uniform(0.05, 0.2))
        body[ellipsoid(centre, radii) & lungs] = 30
    body[ellipsoid((-0.3, 0.05, -0.65), (0.42, 0.5, 0.4)) & muscle] = 110
    body[ellipsoid((0.12, 0.2, 0.1), (0.24, 0.3, 0.35))] = 180
    ring = (x / 0.74) ** 2 + (y / 0.66) ** 2
    body[(np.abs(ring - 1) < 0.06) & (np.sin(14 * z + 3 * y) > 0.55) & torso] = 500
    body[((x / 0.13) ** 2 + ((y + 0.45) / 0.15) ** 2 < 1) & torso] = 350 + 250 * random.random()
    noise = random.standard_normal(SHAPE).astype(np.float32)
    return np.round(body + 20 * noise).clip(-1024, 3071).astype(np.int16)

"""Names of the published checkpoint's tensors (`ckpt_best.pth`, entry "model") against ours."""

import re
from collections.abc import Callable

from torch import Tensor

_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^encoder\.patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^encoder\.layers([1-4])\.0\.0\.", lambda m: f"encoder.stages.{int(m[1]) - 1}."),
    (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
    (r"^encoder([1-4])\.layer\.", lambda m: f"decoder.skips.{int(m[1]) - 1}.layer."),
    (r"^encoder10\.layer\.", "decoder.bottleneck.layer."),
    (r"^decoder([1-5])\.", lambda m: f"decoder.ups.{5 - int(m[1])}."),
    (r"^out\.", "decoder.head."),
]

# MONAI 0.8 made a third convolution in every residual block and used it only where channels change;
# the encoder's final norm feeds an output that the published model does not use.
_UNUSED = re.compile(r"^encoder\.norm\.|^encoder(2|3|4|10)\.layer\.conv3\.")


def from_reference(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename a published state dict.

    Returns:
        Our state dict, and for every tensor left out (by its published name) the reason.
    """
    taken: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name, tensor in state.items():
        published = name.removeprefix("module.")
        if _UNUSED.match(published):
            skipped[name] = "the published network never uses it"
        elif published.endswith("relative_position_index"):
            skipped[name] = "follows from the window size"
        else:
            ours = published
            for pattern, replacement in _RENAMES:
                ours = re.sub(pattern, replacement, ours)
            is_mask_token = ours == "encoder.mask_token"
            taken[ours] = tensor.reshape(1, -1, 1, 1, 1) if is_mask_token else tensor
    return taken, skipped

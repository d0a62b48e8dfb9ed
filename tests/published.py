"""The published network's weights and numbers."""

import importlib.util
from pathlib import Path

from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.layouts import PRETRAINING, from_layout

PARITY = Path(__file__).parent / "parity"


_spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
parity = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parity)


def published_network(axes):
    network = RepairNetwork(
        SwinArchitecture(
            patch_merging="reference",
            restore_intensity=False,
            normalise_skips=False,
            window_edges="reference",
            axes=axes,
        )
    ).eval()
    state = from_layout(parity.state_dict(0), PRETRAINING).state
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return network

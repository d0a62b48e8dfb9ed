from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder

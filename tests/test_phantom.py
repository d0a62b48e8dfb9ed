import nibabel
import numpy as np

from dae3d.phantom import phantom, write_phantom


def test_the_phantom_is_a_torso_in_hounsfield_units_and_another_with_every_seed(tmp_path):
    write_phantom(tmp_path / "p.nii.gz", seed=3)
    image = nibabel.load(tmp_path / "p.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert image.shape == (144, 112, 128)
    np.testing.assert_array_equal(image.affine, np.diag([2.5, 2.5, 2.5, 1]))
    voxels = np.asarray(image.dataobj)
    np.testing.assert_array_equal(voxels, phantom(3))
    body, other = voxels > -500, phantom(4) > -500
    assert 0.6 < (body & other).sum() / (body | other).sum() < 0.97
    # Air outside and lung inside, soft tissue, bone: each has its share.
    assert abs(voxels[:5, :5].mean() + 1000) < 5
    for low, high in ((-1024, -930), (-930, -750), (-20, 120), (300, 700)):
        assert np.mean((voxels >= low) & (voxels < high)) > 0.005

"""DICOM: which files make up a series, where its slices lie, what it is, and its voxels."""

"""Pictures of volumes: slices, overlays of labels."""

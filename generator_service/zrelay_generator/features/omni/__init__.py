"""Z-Image Omni: reference images."""

"""The data sets, one file each: how to obtain their images, labels and splits."""

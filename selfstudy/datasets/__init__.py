"""HDF5 rows of a split as host tensors, one file a data set."""

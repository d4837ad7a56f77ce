"""Input pipeline: from data files to augmented minibatches on the device."""

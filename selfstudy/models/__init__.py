"""Networks: images to features, features to probe logits."""

"""What is asked beside Azure Resource Manager: tokens, blobs, run history, metrics, answers, datasets."""

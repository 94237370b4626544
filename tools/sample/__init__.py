"""What made the sample dataset and the small base model that the stand-in serves at first."""

"""What made the sample dataset and the small base model that the emulator serves at first."""

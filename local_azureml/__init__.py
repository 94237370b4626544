"""A private Azure Machine Learning on localhost, for the unmodified Azure ML SDK."""

"""`python -m local_azureml`."""

from local_azureml.cli import program

if __name__ == "__main__":
    program()

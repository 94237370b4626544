"""`python -m local_azureml`."""

import sys

from local_azureml.cli import in_utf8, main

if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

"""What really runs: jobs and their steps, commands, deployments."""

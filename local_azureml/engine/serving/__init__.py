"""Deployments: the processes that answer for an endpoint."""

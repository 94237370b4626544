"""What Azure Resource Manager answers for: the resources of a workspace, and a registry's."""

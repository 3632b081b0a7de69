"""How small networks are trained beside the task's own loss."""

"""The control plane: calls, apps, images, logs, the loop that owns the cluster. One file per noun."""

"""What all Kubeflow components share: their container, and a step's exchange with Kubeflow. Steps do not import it."""
